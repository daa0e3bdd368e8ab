"""Small holes and islands of a mask (original: `remove_small_regions`, by OpenCV)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samfast.errors import InputError


def remove_small(mask: NDArray[np.bool_], area: float, mode: str) -> tuple[NDArray[np.bool_], bool]:
    """Fill holes, or drop islands, of fewer pixels than `area`. Regions touch at corners too.

    mask     (H, W) bool, or integers of which a mask's are 1 and the others 0
    mode     "holes" or "islands"; if all islands are small, the largest stays
    returns  the mask, and whether anything was changed; the input stays as it is
    """
    if mode not in ("holes", "islands"):
        raise InputError(f"unknown kind of region {mode!r}; there are holes and islands")
    from scipy import ndimage

    inside = ((mode == "holes") ^ mask).astype(np.bool_)
    window = _around(inside if mode == "islands" else ~inside)
    regions, count = ndimage.label(inside[window], structure=np.ones((3, 3), dtype=bool))
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    beyond = _beyond(regions, window, mask.shape) if mode == "holes" else []
    for region, place in beyond:
        sizes[region] += inside[place].size
    small = sizes < area
    small[0] = False  # the background is not a region
    if not small.any():
        return mask, False
    if mode == "holes":
        filled = ~inside
        filled[window] |= small[regions]
        for region, place in beyond:
            filled[place] = small[region]
        return filled, True
    stays = ~small
    stays[0] = False
    if not stays.any():
        stays[_largest(regions, sizes)] = True
    kept = np.zeros_like(inside)
    kept[window] = stays[regions]
    return kept, True


Window = tuple[slice, slice]
"""Rows and columns of a part of a mask."""


def _around(mask: NDArray[np.bool_]) -> Window:
    """The mask's box and at least one pixel more, if there is one; everything for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    # From even places on, as OpenCV's blocks of pixels are.
    top, left = (max(0, int(each[0]) - 1) // 2 * 2 for each in (rows, columns))
    bottom, right = min(mask.shape[0], rows[-1] + 2), min(mask.shape[1], columns[-1] + 2)
    return slice(top, int(bottom)), slice(left, int(right))


def _beyond(
    regions: NDArray[np.int32], window: Window, shape: tuple[int, ...]
) -> list[tuple[int, Window]]:
    """The parts of the image above, below, left and right of the window, and the regions that they
    continue: where a part is not empty, the window's edge to it is all outside the mask.
    """
    rows, columns = window
    parts = (
        (regions[0, 0], (slice(0, rows.start), slice(0, shape[1]))),
        (regions[-1, 0], (slice(rows.stop, shape[0]), slice(0, shape[1]))),
        (regions[0, 0], (rows, slice(0, columns.start))),
        (regions[0, -1], (rows, slice(columns.stop, shape[1]))),
    )
    return [
        (int(region), place)
        for region, place in parts
        if place[0].start < place[0].stop and place[1].start < place[1].stop
    ]


def _largest(regions: NDArray[np.int32], sizes: NDArray[np.int64]) -> int:
    """The largest region's label; of equals OpenCV's first, in the order of 2x2 pixel blocks."""
    largest = np.flatnonzero(sizes[1:] == sizes[1:].max()) + 1
    rows, columns = np.nonzero(np.isin(regions, largest))
    first = np.lexsort((columns // 2, rows // 2))[0]
    return int(regions[rows[first], columns[first]])
