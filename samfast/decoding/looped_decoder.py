"""The plain model on one image's prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from samfast.decoding.decoder import Decoder, DecoderCall, with_rows
from samfast.decoding.decoder_output import DecoderOutput, objects_per_call
from samfast.decoding.nested_decoder import NestedDecoder
from samfast.decoding.skip_low_iou import decode_masks
from samfast.device.transfer import to_device
from samfast.prompts.object_rows import has_padding, image_count, offsets_of, points_of
from samfast.prompts.prompt_buffer import token_mask
from samfast.types import PackedPrompts


class LoopedDecoder(Decoder):
    """Decodes image by image, some objects at a time."""

    across_images = False

    @property
    def batched(self) -> Decoder:
        return NestedDecoder(self._sam)

    def describe(self) -> str:
        count = objects_per_call(self._device)
        return f"as it is written, image by image, {count} objects at a time"

    def _decode(
        self, prompts: Sequence[PackedPrompts], call: DecoderCall, output: DecoderOutput
    ) -> None:
        step = objects_per_call(self._device)
        for packed, rows in with_rows(prompts, output):
            images = range(image_count(packed)) if packed.images is None else packed.images
            offsets = offsets_of(packed).tolist()
            for image, (first, last) in zip(images, pairwise(offsets), strict=True):
                work = partial(self._decode_rows, packed, image, call, rows)
                call.retry.run_chunks(first, last, step, work)

    def _decode_rows(
        self,
        prompts: PackedPrompts,
        image: int,
        call: DecoderCall,
        output: DecoderOutput,
        start: int,
        stop: int,
    ) -> None:
        """Decode objects start to stop, all of one image."""
        sam, device = self._sam, self._device
        coords, labels = points_of(prompts, slice(start, stop))
        points = mask = None
        if coords is not None and labels is not None:
            points = (to_device(coords, device), to_device(labels, device))
            if has_padding(prompts, labels):
                mask = to_device(token_mask(labels, prompts.boxes is not None), device)
        boxes, masks = (
            None if values is None else to_device(values[start:stop], device)
            for values in (prompts.boxes, prompts.masks)
        )
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
        low_res, iou = decode_masks(
            sam.mask_decoder,
            call.features[image : image + 1],
            sam.prompt_encoder.get_dense_pe(),
            sparse,
            dense,
            call.multimask,
            mask,
            call.min_iou,
        )
        output.put(start, low_res, iou)
