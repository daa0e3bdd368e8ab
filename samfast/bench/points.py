"""The point and the box that ask for a mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from samfast.types import Size

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def edt(mask: NDArray[np.bool_]) -> Point:
    """XY of the pixel farthest from the mask's border; of several the first in row-major order.

    The maximum of the Euclidean distance transform, the outside of the image counted as background.
    mask  (H, W) bool with at least one pixel
    """
    from scipy import ndimage

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    cut = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    distance = ndimage.distance_transform_edt(np.pad(cut, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(distance)), cut.shape)
    return float(left + column), float(top + row)


def seed(mask: NDArray[np.bool_]) -> Point:
    """XY of the centre of mass, rounded, where that is a pixel of the mask; else as `edt`."""
    rows, columns = np.nonzero(mask)
    row, column = round(float(rows.mean())), round(float(columns.mean()))
    return (float(column), float(row)) if mask[row, column] else edt(mask)


RULES: dict[str, Callable[[NDArray[np.bool_]], Point]] = {"edt": edt, "seed": seed}


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
