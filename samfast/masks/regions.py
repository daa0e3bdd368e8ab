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
    regions, count = ndimage.label(inside, structure=np.ones((3, 3), dtype=bool))
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    small = sizes < area
    small[0] = False  # the background is not a region
    if not small.any():
        return mask, False
    if mode == "holes":
        return ~inside | small[regions], True
    stays = ~small
    stays[0] = False
    if not stays.any():
        stays[_largest(regions, sizes)] = True
    return stays[regions], True


def _largest(regions: NDArray[np.int32], sizes: NDArray[np.int64]) -> int:
    """The largest region's label; of equals OpenCV's first, in the order of 2x2 pixel blocks."""
    largest = np.flatnonzero(sizes[1:] == sizes[1:].max()) + 1
    rows, columns = np.nonzero(np.isin(regions, largest))
    first = np.lexsort((columns // 2, rows // 2))[0]
    return int(regions[rows[first], columns[first]])
