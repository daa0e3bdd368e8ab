"""The masks that were found in an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class GeneratedMasks:
    """N masks, as columns.

    boxes, crop_boxes  (N, 4) int64 XYXY in pixels: of the mask, and of the crop it was found in
    area               (N,) int64, pixels
    iou, stability     (N,) float32
    points             (N, 2) float64 XY, the prompt
    masks              (N,) objects: of each mask the runs in the whole image (`samfast.masks.rle`),
                       or, where that was asked for, COCO's text of them
    """

    boxes: NDArray[np.int64]
    area: NDArray[np.int64]
    iou: NDArray[np.float32]
    stability: NDArray[np.float32]
    points: NDArray[np.float64]
    crop_boxes: NDArray[np.int64]
    masks: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.boxes)

    def pick(self, index: NDArray[np.int64]) -> GeneratedMasks:
        """The masks of those indices, in their order."""
        return GeneratedMasks(*(getattr(self, field.name)[index] for field in fields(self)))


def join(parts: Sequence[GeneratedMasks]) -> GeneratedMasks:
    """The masks of all parts (at least one), in order."""
    return GeneratedMasks(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(GeneratedMasks)
        )
    )


def objects(masks: Sequence[NDArray[np.int64] | str]) -> NDArray[np.object_]:
    """A column of arrays or texts; NumPy would make a matrix of arrays if they were of one
    length.
    """
    column = np.empty(len(masks), dtype=object)
    for index, own in enumerate(masks):
        column[index] = own
    return column
