"""Prompts of all images as jagged nested tensors, decoded by the plain model at once.

This is the nested-tensor step of "Accelerating Generative AI with PyTorch: Segment Anything, Fast"
(2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samfast.decoding.decoder import Decoder, DecoderCall, with_rows
from samfast.decoding.decoder_output import DecoderOutput, objects_per_call
from samfast.device.transfer import to_device
from samfast.prompts.object_rows import has_padding, image_of, move, offsets_of
from samfast.prompts.prompt_buffer import token_mask
from samfast.types import PackedPrompts


class NestedDecoder(Decoder):
    """Decodes a ragged batch of all images, some objects at a time.

    Coordinates, labels and boxes are jagged over the images: (B, n, K, 2), (B, n, K), (B, n, 4),
    where n differs. The model runs on their flat values; the offsets give each object's image and
    make the flat answers jagged again. Nothing is padded between images and nothing waits for the
    device.

    Attention is on the flat values too, not on jagged tensors. An object's tokens attend to each
    other and to the object's copy of the image, never to another object's: within an object nothing
    is ragged, except that objects with fewer points than others are masked. Jagged attention would
    also read the longest sequence on the host, and so wait.
    """

    def describe(self) -> str:
        count = objects_per_call(self._device)
        return f"as it is written, on nested tensors of all images, {count} objects at a time"

    @property
    def _skips_low_iou(self) -> bool:
        return False

    def _decode(
        self, prompts: Sequence[PackedPrompts], call: DecoderCall, output: DecoderOutput
    ) -> None:
        for packed, rows in with_rows(prompts, output):
            if len(packed):
                self._decode_nested(packed, call, rows)

    def _decode_nested(
        self, prompts: PackedPrompts, call: DecoderCall, output: DecoderOutput
    ) -> None:
        sam = self._sam
        padded = has_padding(prompts, prompts.labels)  # read before they leave the host
        prompts = move(prompts, self._device)
        offsets = offsets_of(prompts)
        coords, labels, boxes = (
            None if values is None else nested(values, offsets)
            for values in (prompts.coords, prompts.labels, prompts.boxes)
        )
        images = image_of(prompts)

        def work(start: int, stop: int) -> None:
            rows = slice(start, stop)
            kinds = None if labels is None else labels.values()[rows]
            sparse, dense = sam.prompt_encoder(
                points=None if coords is None or kinds is None else (coords.values()[rows], kinds),
                boxes=None if boxes is None else boxes.values()[rows],
                masks=None
                if prompts.masks is None
                else to_device(prompts.masks[rows], self._device),
            )
            features = call.features
            low_res, iou = sam.mask_decoder(
                image_embeddings=features if len(features) == 1 else features[images[rows]],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=call.multimask,
                token_mask=token_mask(kinds, boxes is not None)
                if kinds is not None and padded
                else None,
            )
            output.put(start, low_res, iou)

        call.retry.run_chunks(0, len(prompts), objects_per_call(self._device), work)


def nested(values: Tensor, offsets: Tensor) -> Tensor:
    """Flat values (P, ...) as a jagged tensor (B, n, ...) over offsets (B + 1,), which share memory
    with it.

    Values made in inference mode are copied: outside of it torch cannot unbind views of them.
    """
    if values.is_inference():
        values = values.clone()
    return torch.nested.nested_tensor_from_jagged(values, offsets)
