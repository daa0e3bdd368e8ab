"""Masks as CVAT keeps them: what lies in the bounding box, and the box at the end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.coco_rle import MaskLike
from samfast.errors import InputError


def cvat_runs(mask: MaskLike) -> list[int]:
    """Run lengths in the bounding box, along its rows, then the box: the `points` of a mask shape.

    The first run is of zeros and may be empty. The box is [left, top, right, bottom], the last
    column and row included.

    Raises InputError if it is not a mask, or if it is empty: CVAT has no empty masks.

        points = samfast.outputs.cvat_runs(mask)  # [0, 3, 1, 2, 10, 20, 12, 21]: 5 of 6 pixels
    """
    crop, box = cvat_crop(mask)
    flat = crop.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    runs: list[int] = np.diff(starts, append=flat.size).tolist()
    return [*([0] if flat[0] else []), *runs, *box]


def cvat_crop(mask: MaskLike) -> tuple[NDArray[np.bool_], list[int]]:
    """The mask in its bounding box, and the box [left, top, right, bottom], last ones included.

    Raises InputError as `cvat_runs`.
    """
    dense = coco_rle.decode(mask)
    rows, columns = np.flatnonzero(dense.any(1)), np.flatnonzero(dense.any(0))
    if rows.size == 0:
        raise InputError("the mask is empty, and CVAT has no empty masks")
    left, top, right, bottom = (int(i) for i in (columns[0], rows[0], columns[-1], rows[-1]))
    return dense[top : bottom + 1, left : right + 1], [left, top, right, bottom]
