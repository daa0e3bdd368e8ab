"""COCO's three ways to write a mask: compressed and plain run lengths, and polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfast.errors import DatasetError, MissingExtraError
from samfast.masks import rle
from samfast.types import Size


def to_mask(segmentation: Any, size: Size, where: str) -> NDArray[np.bool_]:
    """A `segmentation` of COCO's instances format as pixels.

    segmentation  {"size": [H, W], "counts": text or numbers}, or a list of polygons [x0, y0, x1,
                  y1, ...]
    size          (height, width) of the image, in pixels
    where         names the annotation in messages
    returns       (H, W) bool

    Raises DatasetError if it is neither or does not fit the image.
    """
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, size, where)
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, size, where)
    raise DatasetError(
        f"{where}: its segmentation is {type(segmentation).__name__}; it must be run lengths "
        '({"size": [H, W], "counts": ...}) or a list of polygons'
    )


def check_size(segmentation: Any, size: Size, where: str) -> None:
    """DatasetError if run lengths say another image size than `size`, (height, width)."""
    if not isinstance(segmentation, dict):
        return
    given = segmentation.get("size")
    if not isinstance(given, list) or list(given) != list(size):
        raise DatasetError(
            f"{where}: its mask's size is {given}, but its image is {size[0]} x {size[1]} (height "
            "x width); "
            "masks must have the size of their image"
        )


def _from_runs(segmentation: dict[str, Any], size: Size, where: str) -> NDArray[np.bool_]:
    check_size(segmentation, size, where)
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _runs_of(counts, where)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise DatasetError(
            f"{where}: its run lengths are damaged: 'counts' must be text or whole numbers from 0"
        )
    if sum(counts) != size[0] * size[1]:
        raise DatasetError(
            f"{where}: its run lengths are damaged: they cover {sum(counts)} pixels of "
            f"{size[0] * size[1]}"
        )
    return np.ascontiguousarray(rle.decode({"size": list(size), "counts": counts}))


def _runs_of(text: str, where: str) -> list[int]:
    """COCO's compressed counts -> run lengths.

    Five bits a character from "0" on, lowest first, the sixth bit saying that more follow; from the
    fourth number on each is the difference from the last but one. Not by pycocotools, which trusts
    the text.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DatasetError(
                f"{where}: its run lengths are damaged: there is {character!r} among them"
            )
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign of the last group
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        value = shift = 0
    if shift:
        raise DatasetError(
            f"{where}: its run lengths are damaged: they end in the middle of a number"
        )
    return runs


def _from_polygons(polygons: list[Any], size: Size, where: str) -> NDArray[np.bool_]:
    if not polygons:
        raise DatasetError(
            f"{where}: its segmentation is an empty list; give a polygon or leave the annotation "
            "out"
        )
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(type(n) in (int, float) for n in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            raise DatasetError(
                f"{where}: a polygon must be a list of at least three points, [x0, y0, x1, y1, x2, "
                "y2, ...]"
            )
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise MissingExtraError(
            "masks as polygons need pycocotools, which is not installed: pip install pycocotools"
        ) from error
    pieces = coco.frPyObjects([[float(n) for n in polygon] for polygon in polygons], *size)
    mask: NDArray[np.bool_] = np.ascontiguousarray(coco.decode(coco.merge(pieces))).astype(bool)
    return mask
