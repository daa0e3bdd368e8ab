"""Prompts of embedded images -> the decoder's answers, together with the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from samfast.decoding.decoder import Decoder
from samfast.decoding.decoder_output import DecoderOutput
from samfast.device.retry import FEWER_OBJECTS, RetryOnOOM
from samfast.device.transfer import to_device
from samfast.errors import PromptError, shown
from samfast.model.sam import Sam
from samfast.prompts import batch_prompts, pack_groups
from samfast.prompts.object_rows import on_host
from samfast.types import Embeddings, PackedPrompts, Prompts


@dataclass(frozen=True, eq=False)
class DecodedPrompts:
    """The answers to prompts of some images, on the model's device.

    packed      the prompts that were decoded; made of `prompts` they are on the host and have every
                image once, together
    prompts     of each image, as the user gave them; none if they were packed
    numbers     of each image, for messages
    side        of the model's input in pixels
    threshold   masks are true where logits are above it
    """

    output: DecoderOutput
    packed: Sequence[PackedPrompts]
    embeddings: Embeddings
    prompts: Sequence[Prompts]
    numbers: Sequence[int]
    side: int
    threshold: float


def decode_prompts(
    model: Sam,
    decode: Decoder,
    embeddings: Embeddings,
    prompts: Sequence[Prompts],
    multimask: bool,
    numbers: Sequence[int] | None = None,
) -> DecodedPrompts:
    """Check, pack and decode the prompts of images. Raises PromptError, DeviceMemoryError.

    numbers  of the images, for messages; None: 0, 1, and so on
    """
    mask_size = model.prompt_encoder.mask_input_size
    sizes = embeddings.original_sizes, embeddings.input_sizes
    numbers = range(len(embeddings)) if numbers is None else numbers
    packed = pack_groups(prompts, *sizes, mask_size, numbers)
    return _decoded(model, decode, embeddings, packed, multimask, prompts, numbers)


def decode_packed(
    model: Sam,
    decode: Decoder,
    embeddings: Embeddings,
    packed: Sequence[PackedPrompts],
    multimask: bool,
) -> DecodedPrompts:
    """Check and decode prompts that are packed. Raises as `decode_prompts`; what is wrong with
    prompts on the device is in the output's codes.
    """
    if isinstance(packed, PackedPrompts) or not isinstance(packed, Sequence) or not packed:
        raise PromptError(
            f"{shown(packed)} instead of a list of PromptBatches; wrap a single one: [prompts]"
        )
    pairs = [batch_prompts(each, None, embeddings, model.device) for each in packed]
    packed = [prompts for prompts, _ in pairs]
    decoded = _decoded(model, decode, embeddings, packed, multimask, (), range(len(embeddings)))
    codes = [checks.codes for _, checks in pairs]
    if all(map(on_host, codes)):  # and checked already
        return decoded
    output, device = decoded.output, decoded.output.codes.device
    wrong = torch.cat([to_device(each, device) for each in codes])
    return replace(decoded, output=replace(output, codes=output.codes | wrong))


def _decoded(
    model: Sam,
    decode: Decoder,
    embeddings: Embeddings,
    packed: Sequence[PackedPrompts],
    multimask: bool,
    prompts: Sequence[Prompts],
    numbers: Sequence[int],
) -> DecodedPrompts:
    retry = RetryOnOOM(FEWER_OBJECTS)
    output = decode(embeddings.features, packed, multimask=multimask, retry=retry)
    side, threshold = model.image_encoder.img_size, model.mask_threshold
    return DecodedPrompts(output, packed, embeddings, prompts, numbers, side, threshold)
