"""The plain model on one image's prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor

from samfast.masks.halving import Halving
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
        self,
        features: Tensor,
        groups: Sequence[PromptGroup],
        multimask: bool,
        halving: Halving,
        narrow: bool = False,
    ) -> list[Decoded]:
        """As `samfast.recipes.decoder.Decoder`."""
        sam, answers = self._sam, []
        features = features.to(sam.mask_decoder.iou_token.weight.dtype)
        for group in groups:
            flat, offsets = Flat.of(group), group.batch.offsets
            answer = halving.whole(partial(Decoded.empty, sam, flat.count, multimask, sam.device, narrow))
            for image, (first, last) in zip(group.images, pairwise(offsets), strict=True):
                work = partial(self._decode, features[image : image + 1], flat, multimask, answer)
                halving.over(first, last, at_a_time(sam.device), work)
            answers.append(answer)
        return answers

    def _decode(
        self, features: Tensor, flat: Flat, multimask: bool, answer: Decoded, start: int, stop: int
    ) -> None:
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
        low_res, iou = sam.mask_decoder(
            image_embeddings=features,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            **mask,
        )
        answer.put(start, low_res, iou)
