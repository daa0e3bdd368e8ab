"""The prompts of `SamFast.predict_batch`: packed or jagged, on the host or on the device."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from samfast.errors import PromptError
from samfast.prompts import device_checks
from samfast.prompts.device_checks import DeviceChecks
from samfast.prompts.jagged_prompts import pack_jagged
from samfast.prompts.object_rows import move, offsets_of, on_host
from samfast.types import Embeddings, PackedPrompts


def batch_prompts(
    prompts: PackedPrompts | Tensor,
    labels: Tensor | None,
    embeddings: Embeddings,
    device: torch.device,
) -> tuple[PackedPrompts, DeviceChecks]:
    """The prompts on the host or on the device, without reading a value there, and their checks.

    prompts, labels  as `SamFast.predict_batch`
    device           of the model, to which prompts on another device move

    Raises PromptError for other shapes, and for prompts on the host that do not fit their images.
    """
    images = range(len(embeddings))
    ragged = None
    if isinstance(prompts, PackedPrompts):
        if labels is not None:
            raise PromptError("labels beside a PromptBatch, which has its own; leave them out")
        if len(prompts.offsets) - 1 != len(images):
            raise PromptError(
                f"prompts for {len(prompts.offsets) - 1} images but embeddings of {len(images)}; "
                "give one each"
            )
        packed = prompts
    else:
        packed = pack_jagged(prompts, labels, embeddings.original_sizes, embeddings.input_sizes)
        ragged = device_checks.ragged(prompts, labels)
    if on_host(packed):
        packed = replace(packed, offsets=offsets_of(packed))
    else:
        packed = move(packed, device)
    codes = device_checks.wrong_prompts(packed, embeddings.input_sizes)
    if ragged is not None:
        codes |= ragged.to(codes.device)
    checks = DeviceChecks(codes, images, offsets_of(packed))
    if on_host(packed):
        checks()
    return packed, checks
