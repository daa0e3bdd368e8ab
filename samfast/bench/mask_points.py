"""The points and boxes that prompt for annotated masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from samfast.bench.coco_dataset import Box
from samfast.types import Size

Point = tuple[float, float]
"""XY."""


def edt(mask: NDArray[np.bool_]) -> Point:
    """XY of the pixel farthest from the mask's border; of several the first in row-major order.

    The maximum of the Euclidean distance transform, the outside of the image counted as background.
    mask  (H, W) bool with at least one pixel
    """
    from scipy import ndimage

    left, top, width, height = map(int, box_of(mask))
    cut = np.pad(mask[top : top + height, left : left + width], 1)
    distance = ndimage.distance_transform_edt(cut)[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return float(left + column), float(top + row)


def seed(mask: NDArray[np.bool_]) -> Point:
    """XY of the centre of mass, rounded, where that is a pixel of the mask; else as `edt`."""
    row, column = (
        round(float(counts @ np.arange(len(counts)) / counts.sum()))
        for counts in (mask.sum(axis=1), mask.sum(axis=0))  # nonzero pixels would be slower
    )
    return (float(column), float(row)) if mask[row, column] else edt(mask)


RULES: dict[str, Callable[[NDArray[np.bool_]], Point]] = {"edt": edt, "seed": seed}
"""How a mask's point is chosen; "seed" is the rule of "Accelerating Generative AI with
PyTorch: Segment Anything, Fast" (2023)."""


def box_of(mask: NDArray[np.bool_]) -> Box:
    """The tightest XYWH box of a mask with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return float(left), float(top), float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)


def filled(box: Box, size: Size) -> NDArray[np.bool_]:
    """An XYWH box as a mask of (height, width) `size`: the pixels whose centres lie in it."""
    x, y, width, height = box
    across, down = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    columns, rows = (across >= x) & (across < x + width), (down >= y) & (down < y + height)
    mask: NDArray[np.bool_] = rows[:, None] & columns[None, :]
    return mask
