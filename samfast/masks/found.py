"""The masks that were found in an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Found:
    """N masks, as columns.

    boxes, crop_boxes  (N, 4) int64 XYXY in pixels: of the mask, and of the crop it was found in
    iou, stability     (N,) float32
    points             (N, 2) float64 XY, the prompt
    runs               (N,) objects, the runs of each mask (`samfast.masks.rle`) in the whole image
    """

    boxes: NDArray[np.int64]
    iou: NDArray[np.float32]
    stability: NDArray[np.float32]
    points: NDArray[np.float64]
    crop_boxes: NDArray[np.int64]
    runs: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.boxes)

    def pick(self, index: NDArray[np.int64]) -> Found:
        """The masks of those indices, in their order."""
        return Found(*(getattr(self, field.name)[index] for field in fields(self)))


def join(parts: Sequence[Found]) -> Found:
    """The masks of all parts (at least one), in order."""
    return Found(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Found)))


def objects(runs: Sequence[NDArray[np.int64]]) -> NDArray[np.object_]:
    """A column of arrays; NumPy would make a matrix of them if they were of one length."""
    column = np.empty(len(runs), dtype=object)
    for index, own in enumerate(runs):
        column[index] = own
    return column
