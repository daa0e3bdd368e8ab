"""Masks as polygons with holes, along the edges of pixels, so that nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.atomic_files import atomic_write
from samfast.outputs.records import json_line

_NW, _NE, _SW, _SE = 1, 2, 4, 8
"""Bits of the four pixels around a corner that are inside the mask."""

_TOUCHING = (
    (_NW | _SE, (0, 0), (1, 1), (_NW, _SE), (15 - _SW, 15 - _NE)),
    (_NE | _SW, (0, 1), (1, 0), (_NE, _SW), (15 - _NW, 15 - _SE)),
)
"""Where two pixels of a mask touch only at a corner, two corners of rings lie on each other: the
bits around, the pixels' places (row, column), and the bits of both corners if the pixels belong to
different polygons, or to one polygon, whose ring is parted there so that it does not touch itself.
"""


def _ones_at(*codes: int) -> NDArray[np.int64]:
    """(16,): 1 for those bits around a corner, 0 for others."""
    return np.isin(np.arange(16), codes).astype(np.int64)


# Two edges meet in a corner. Those of a single pixel, inside or outside, lie on its side.
_EDGE_IN_EAST = _ones_at(_NE, 15 - _NE, _SE, 15 - _SE)
_EDGE_IN_SOUTH = _ones_at(_SW, 15 - _SW, _SE, 15 - _SE)
# With the mask at the right hand of who follows a ring, a ring leaves these corners along a row.
_LEAVES_ALONG_ROW = _ones_at(_NW, _SE, 15 - _SW, 15 - _NE)
# From a corner to a pixel of the mask: the one inside, or beside the one outside in its row.
_INSIDE_IS_EAST = _ones_at(_NE, 15 - _NW, _SE, 15 - _SW)


@dataclass(frozen=True, eq=False)
class Polygon:
    """A region of a mask whose pixels share edges, and the holes in it.

    exterior  (K, 2) int64 XY, corners of pixels: (0, 0) is the upper left corner of the image,
              (W, H) its lower right one. The first corner is not repeated at the end
    holes     an array (K, 2) for each hole

    Seen on the image, exteriors run clockwise and holes counter-clockwise, so that the shoelace
    formula gives positive and negative areas. A ring does not touch itself; holes may touch each
    other and the exterior at corners.
    """

    exterior: NDArray[np.int64]
    holes: tuple[NDArray[np.int64], ...] = ()


def mask_to_polygons(mask: NDArray[np.bool_]) -> list[Polygon]:
    """The polygons of a mask (H, W), from top to bottom; filled, they are the mask again.

    Each has all pixels that are connected by edges; pixels that touch at corners only belong to two
    polygons. Raises InputError if the mask is not (H, W) bool.

        polygons = samfast.outputs.mask_to_polygons(results[0].best()[0].cpu().numpy())
        polygons[0].exterior  # (K, 2) XY in pixels
    """
    mask = coco_rle.dense_mask(mask)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return []
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corners, following, regions = _linked_corners(np.pad(inside, 1))
    points = corners + np.array([columns[0], rows[0]])
    rings: dict[int, list[NDArray[np.int64]]] = {}
    # A region's first corner lies on its exterior, so that its holes come later.
    for region, ring in _rings(following, regions):
        rings.setdefault(region, []).append(points[ring])
    return [Polygon(exterior, tuple(holes)) for exterior, *holes in rings.values()]


def _linked_corners(
    padded: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], list[int], list[int]]:
    """The corners of all rings (N, 2) XY from top to bottom, each one's follower, and its region.

    padded  (H + 2, W + 2), a mask with a border outside it
    """
    from scipy import ndimage

    labels, _ = ndimage.label(padded)
    x, y, codes = _corners(padded, labels)
    along_row = np.lexsort((_EDGE_IN_EAST[codes], x, y))
    along_column = np.lexsort((_EDGE_IN_SOUTH[codes], y, x))
    # In each row of corners, the first and second are joined by an edge, the third and fourth, ...
    following = np.where(
        _LEAVES_ALONG_ROW[codes] == 1, _partners(along_row), _partners(along_column)
    )
    regions = labels[y + _EDGE_IN_SOUTH[codes], x + _INSIDE_IS_EAST[codes]]
    return np.stack([x, y], 1), following.tolist(), regions.tolist()


def _corners(
    padded: NDArray[np.bool_], labels: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """x, y and the bits of the pixels inside of each corner, from top to bottom."""
    bits = padded.view(np.uint8)
    around = bits[:-1, :-1] + bits[:-1, 1:] * _NE + bits[1:, :-1] * _SW + bits[1:, 1:] * _SE
    is_corner = _ones_at(1, 2, 4, 8, 7, 11, 13, 14, _NW | _SE, _NE | _SW)
    y, x = np.nonzero(is_corner[around])
    codes = around[y, x].astype(np.int64)
    places, all_codes = [np.arange(len(codes))], [codes]
    for bits_around, (row, column), (other_row, other_column), parted, joined in _TOUCHING:
        (touching,) = np.nonzero(codes == bits_around)
        at_y, at_x = y[touching], x[touching]
        label, other = (
            labels[at_y + row, at_x + column],
            labels[at_y + other_row, at_x + other_column],
        )
        codes[touching] = np.where(label == other, joined[0], parted[0])
        places.append(touching)
        all_codes.append(np.where(label == other, joined[1], parted[1]))
    place = np.concatenate(places)
    order = np.argsort(place, kind="stable")
    place = place[order]
    return x[place], y[place], np.concatenate(all_codes)[order]


def _partners(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each corner, the one at the other end of its edge; neighbours in `order` are pairs."""
    partners = np.empty_like(order)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def _rings(following: list[int], regions: list[int]) -> list[tuple[int, list[int]]]:
    """The region and the corners of each ring, in the order of their first corners."""
    rings = []
    seen = bytearray(len(following))
    for start in range(len(following)):
        if seen[start]:
            continue
        ring, corner = [], start
        while not seen[corner]:
            seen[corner] = 1
            ring.append(corner)
            corner = following[corner]
        rings.append((regions[start], ring))
    return rings


def write_polygons(path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Write the records of an image as a JSON list, with polygons in place of run lengths.

    Instead of `segmentation` a record has `polygons`, a list of {"exterior": [[x, y], ...],
    "holes": [[[x, y], ...], ...]} as `Polygon` describes them. Its `bbox` is XYWH in pixels as in a
    COCO file, around all of the mask. The other keys stay.

    Raises InputError if a mask is damaged, OutputError if the file cannot be written.

        samfast.outputs.write_polygons("photo.polygons.json", sam.segment(["photo.jpg"])[0])
    """
    lines = []
    for index, record in enumerate(records):
        rle = coco_rle.encode(record["segmentation"])
        polygons = [
            {"exterior": each.exterior.tolist(), "holes": [hole.tolist() for hole in each.holes]}
            for each in mask_to_polygons(coco_rle.decode(rle))
        ]
        rest = {key: value for key, value in record.items() if key != "segmentation"}
        changed = {"polygons": polygons, **rest, "bbox": coco_rle.bounding_box(rle)}
        lines.append(json_line(changed, f"record {index}"))
    atomic_write(path, ("[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n").encode())
