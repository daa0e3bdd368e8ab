"""Masks of a tile as runs down its columns, and what is computed on runs without all pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.scenes.tile_grid import Box

Key = tuple[int, int]
"""(tile, index): names a mask of a tile."""


@dataclass(frozen=True, eq=False)
class TileMask:
    """A mask as one tile shows it.

    key                       its tile, and its index among the masks of this tile
    box                       of its pixels, in working pixels of the scene
    area                      pixels
    predicted_iou, stability  of the model's answer
    point                     XY of the click that it answers, in working pixels of the scene
    runs                      COCO's text of its runs in the tile
    """

    key: Key
    box: Box
    area: int
    predicted_iou: float
    stability: float
    point: tuple[float, float]
    runs: str
    _parsed: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)

    def inside(self, box: Box, corner: tuple[int, int], tile: int) -> NDArray[np.bool_]:
        """The pixels (h, w) of a box of working pixels that lies in the tile.

        corner  (x, y) of the tile, in working pixels
        tile    its side
        """
        x0, y0, x1, y1 = box
        left, top = corner
        column = np.zeros((x1 - x0, y1 - y0), dtype=np.bool_)
        low, high = max(x0, self.box[0]), min(x1, self.box[2])
        if low >= high:
            return column.T
        begin, end = (low - left) * tile, (high - left) * tile
        starts, ends = self._starts_and_ends(tile)
        first, last = np.searchsorted(ends, begin, "right"), np.searchsorted(starts, end, "left")
        starts = np.maximum(starts[first:last], begin) - begin
        ends = np.minimum(ends[first:last], end) - begin
        steps = np.zeros(end - begin + 1, dtype=np.int8)
        steps[starts] += 1
        steps[ends] -= 1
        filled = np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_).reshape(high - low, tile)
        column[low - x0 : high - x0] = filled[:, y0 - top : y1 - top]
        return column.T

    def _starts_and_ends(self, tile: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the runs of ones begin and end in the tile, column after column; read once."""
        if not self._parsed:
            _, lengths = coco_rle.run_lengths({"size": [tile, tile], "counts": self.runs})
            places = np.cumsum(lengths)
            starts, ends = places[0::2][: len(places) // 2], places[1::2]
            filled = ends > starts
            self._parsed.append((starts[filled], ends[filled]))
        return self._parsed[0]


def masks_of_tile(
    tile: int,
    corner: tuple[int, int],
    side: int,
    valid: NDArray[np.bool_],
    records: Sequence[dict[str, Any]],
) -> list[TileMask]:
    """The masks of a tile without what lies where no data is.

    A mask whose click lies there is left out, as is one that lies mostly there.

    valid    (side, side)
    records  of the tile, or of a larger square with the tile at its upper left, with COCO RLE
    """
    whole = bool(valid.all())
    masks: list[TileMask] = []
    for record in records:
        ((x, y),) = record["point_coords"]
        if not (x < side and y < side and valid[int(y), int(x)]):
            continue
        rle, area = record["segmentation"], int(record["area"])
        if whole and rle["size"] == [side, side]:
            left, top, width, height = (int(value) for value in record["bbox"])
            width, height = width + 1, height + 1  # the original's are last minus first
        else:
            mask = coco_rle.decode(rle)[:side, :side] & valid
            inside = int(np.count_nonzero(mask))
            if 2 * inside < area:
                continue
            rle, area = coco_rle.encode(mask), inside
            left, top, width, height = coco_rle.bounding_box(rle)
        box = (left + corner[0], top + corner[1])
        masks.append(
            TileMask(
                key=(tile, len(masks)),
                box=(*box, box[0] + width, box[1] + height),
                area=area,
                predicted_iou=float(record["predicted_iou"]),
                stability=float(record["stability_score"]),
                point=(x + corner[0], y + corner[1]),
                runs=rle["counts"],
            )
        )
    return masks


def shared(a: Box, b: Box) -> Box | None:
    """What two boxes share, or None."""
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
