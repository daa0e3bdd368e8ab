"""The plain model on one image's prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from samfast.model.sam import Sam
from samfast.recipes.decoded import Decoded, at_a_time
from samfast.recipes.flat import Flat
from samfast.recipes.upload import upload
from samfast.recipes.words import token_mask
from samfast.types import PromptGroup


class Looped:
    """Decodes image by image, some objects at a time."""

    def __init__(self, sam: Sam) -> None:
        self._sam = sam

    def __call__(
        self, features: Tensor, groups: Sequence[PromptGroup], multimask: bool, narrow: bool = False
    ) -> list[Decoded]:
        """As `samfast.recipes.decoder.Decoder`."""
        features = features.to(self._sam.mask_decoder.iou_token.weight.dtype)
        step, answers = at_a_time(self._sam.device), []
        for group in groups:
            flat, offsets = Flat.of(group), group.batch.offsets
            answer = Decoded.empty(self._sam, flat.count, multimask, self._sam.device, narrow)
            for image, first, last in zip(group.images, offsets[:-1], offsets[1:], strict=True):
                for start in range(first, last, step):
                    stop = min(start + step, last)
                    own = self._decode(features[image : image + 1], flat, start, stop, multimask)
                    answer.put(start, *own)
            answers.append(answer)
        return answers

    def _decode(
        self, features: Tensor, flat: Flat, start: int, stop: int, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        sam, device = self._sam, self._sam.device
        coords, labels = flat.points(start, stop)
        points = None
        if coords is not None and labels is not None:
            points = (upload(coords, device), upload(labels, device))
        boxes = None if flat.boxes is None else upload(flat.boxes[start:stop], device)
        masks = None if flat.masks is None else upload(flat.masks[start:stop], device)
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
        mask = {}
        if labels is not None and flat.padded(labels):
            mask["token_mask"] = upload(token_mask(labels, flat.boxes is not None), device)
        answer: tuple[Tensor, Tensor] = sam.mask_decoder(
            image_embeddings=features,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            **mask,
        )
        return answer
