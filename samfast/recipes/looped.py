"""The plain model on one image's prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from samfast.model.sam import Sam
from samfast.recipes.decoded import Decoded, at_a_time
from samfast.recipes.upload import upload
from samfast.recipes.words import token_mask
from samfast.types import PADDING_LABEL, PromptBatch, PromptGroup


class Looped:
    """Decodes image by image, some objects at a time."""

    def __init__(self, sam: Sam) -> None:
        self._sam = sam

    def __call__(self, features: Tensor, groups: Sequence[PromptGroup], multimask: bool) -> list[Decoded]:
        """As `samfast.recipes.decoder.Decoder`."""
        answers = []
        for group in groups:
            answer = Decoded.empty(self._sam, len(group.batch), multimask, self._sam.device)
            for image, start, stop in zip(
                group.images, group.batch.offsets, group.batch.offsets[1:], strict=False
            ):
                step = at_a_time(self._sam.device)
                for at in range(start, stop, step):
                    part = _part(group.batch, at, min(at + step, stop))
                    answer.put(at, *self._decode(features[image : image + 1], part, multimask))
            answers.append(answer)
        return answers

    def _decode(self, features: Tensor, batch: PromptBatch, multimask: bool) -> tuple[Tensor, Tensor]:
        sam, device = self._sam, self._sam.device
        dtype = sam.mask_decoder.iou_token.weight.dtype
        points = None
        if batch.coords is not None and batch.labels is not None:
            points = (upload(batch.coords, device), upload(batch.labels, device))
        boxes = None if batch.boxes is None else upload(batch.boxes, device)
        masks = None if batch.masks is None else upload(batch.masks, device)
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
        mask = {}
        if batch.labels is not None and bool((batch.labels == PADDING_LABEL).any()):
            mask["token_mask"] = upload(token_mask(batch.labels, batch.boxes is not None), device)
        low_res, iou = sam.mask_decoder(
            image_embeddings=features.to(dtype),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            **mask,
        )
        return low_res, iou


def _part(batch: PromptBatch, start: int, stop: int) -> PromptBatch:
    """Some objects of a batch on the host, all of one image."""
    coords, labels = trimmed(batch, start, stop)
    boxes = None if batch.boxes is None else batch.boxes[start:stop]
    masks = None if batch.masks is None else batch.masks[start:stop]
    return PromptBatch(coords, labels, boxes, masks, (0, stop - start))


def trimmed(batch: PromptBatch, start: int, stop: int) -> tuple[Tensor | None, Tensor | None]:
    """The points and labels of some objects, without columns that are padding for all of them."""
    if batch.coords is None or batch.labels is None:
        return None, None
    coords, labels = batch.coords[start:stop], batch.labels[start:stop]
    most = int((labels != PADDING_LABEL).sum(1).max())
    return (coords[:, :most], labels[:, :most]) if most else (None, None)
