"""The masks of an image on their way from candidates to results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samfast.automatic_masks import logit_crops
from samfast.automatic_masks.logit_crops import LogitCrop, LogitCrops
from samfast.types import FilterCounts, Size

Mask = LogitCrop | Tensor | NDArray[np.int64] | str
"""Logits on the device while a mask waits; then its runs in the whole image (R,), on the device or
the host (`samfast.masks.rle`), or COCO's text of them."""


@dataclass(frozen=True, eq=False)
class GeneratedMasks:
    """N masks, as columns on the host.

    boxes          (N, 4) int64 XYXY in pixels of the image
    area           (N,) int64, pixels
    iou            (N,) float32, predicted
    stability      (N,) float32
    points         (N, 2) float64 XY, the prompts
    crop_boxes     (N, 4) int64 XYXY in pixels of the image
    masks          N masks
    size           (height, width) of the image
    counts         how many masks each step so far has left
    """

    boxes: NDArray[np.int64]
    area: NDArray[np.int64]
    iou: NDArray[np.float32]
    stability: NDArray[np.float32]
    points: NDArray[np.float64]
    crop_boxes: NDArray[np.int64]
    masks: Sequence[Mask]
    size: Size
    counts: FilterCounts

    def pick(self, index: NDArray[np.int64]) -> GeneratedMasks:
        """The masks of those indices, in their order."""
        columns: dict[str, Any] = {name: getattr(self, name)[index] for name in _COLUMNS}
        masks: Sequence[Mask]
        if isinstance(self.masks, LogitCrops):
            masks = self.masks.pick(index)
        else:
            masks = [self.masks[i] for i in index.tolist()]
        return replace(self, masks=masks, **columns)


_COLUMNS = ("boxes", "area", "iou", "stability", "points", "crop_boxes")


def join(parts: Sequence[GeneratedMasks]) -> GeneratedMasks:
    """The masks of all parts (at least one) of an image, in order."""
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS
    }
    crops = [part.masks for part in parts if isinstance(part.masks, LogitCrops)]
    masks: Sequence[Mask]
    if len(crops) == len(parts):
        masks = logit_crops.join(crops)
    else:
        masks = [mask for part in parts for mask in part.masks]
    counts = reduce(add, [part.counts for part in parts])
    return replace(parts[0], masks=masks, counts=counts, **columns)
