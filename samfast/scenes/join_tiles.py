"""Masks of tiles -> objects of the scene: those of one object in several tiles become one.

1. Two masks of overlapping tiles are the same object if, in the overlap, they agree: their IoU
   there is at least MIN_IOU. Of several that agree with one, the best is taken, so that a part and
   its whole stay two.
2. What is joined is collected by union-find, best pairs first; no object has two masks of one tile.
3. If a tile shows the object whole, its mask counts: of several, that of the tile in whose cell
   the middle of its box lies, else of the tile in which it lies deepest. If no tile shows it whole,
   each pixel is decided by the tile whose cell it lies in, if the object has a mask there, and
   otherwise by the other tiles.
4. What remains alone, or is cut in every tile, is left out if the middle of its box lies in no
   cell of its tiles: another tile sees it better, and does not find it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.scenes.tile_grid import Box, TileGrid
from samfast.scenes.tile_masks import Key, TileMask, shared
from samfast.scenes.tile_store import Piece, SceneObject, TileStore

MIN_IOU = 0.5
"""Least IoU in the overlap of two tiles of masks that are one object."""

MIN_SHARED_AREA = 16
"""Least pixels of a mask in the overlap, or all of a smaller one: a pixel of the decoder's is 4 x 4
working pixels."""

BORDER = 4
"""A mask that comes as near to a tile's inner border, in working pixels, is cut by it: the decoder
draws masks at a quarter of the resolution."""


class UnionFind:
    """Sets of masks, none of which holds two masks of one tile."""

    def __init__(self) -> None:
        self._parents: dict[Key, Key] = {}
        self._members: dict[Key, dict[int, Key]] = {}

    def find(self, key: Key) -> Key:
        """The representative of the mask's set."""
        root = key
        while (parent := self._parents.get(root, root)) != root:
            root = parent
        while key != root:
            self._parents[key], key = root, self._parents[key]
        return root

    def union(self, a: Key, b: Key) -> bool:
        """Join two sets, unless both have a mask of the same tile."""
        a, b = self.find(a), self.find(b)
        if a == b:
            return False
        ours, theirs = self._of(a), self._of(b)
        if ours.keys() & theirs.keys():
            return False
        root, other = min(a, b), max(a, b)
        self._parents[other] = root
        self._members[root] = {**ours, **theirs}
        self._members.pop(other, None)
        return True

    def members(self, key: Key) -> list[Key]:
        """The masks of the set, by their tiles."""
        return sorted(self._of(self.find(key)).values())

    def _of(self, root: Key) -> dict[int, Key]:
        return self._members.get(root, {root[0]: root})


def join_tiles(store: TileStore, grid: TileGrid) -> Iterator[tuple[SceneObject, list[Piece]]]:
    """The objects of a scene, and the part of each in each cell; ids from 1, along the tiles.

    Masks of two rows of tiles are in memory at a time, and the names of those that are joined.
    """
    sets = UnionFind()
    for _, a, b in sorted(agreeing(store, grid), key=lambda pair: (-pair[0], pair[1:])):
        sets.union(a, b)
    number = 0
    for tile in range(len(grid)):
        for mask in store.masks(tile):
            keys = sets.members(mask.key)
            if keys[0] != mask.key:
                continue  # its object was made with the first of its masks
            made = _object([mask, *map(store.mask, keys[1:])], grid, number + 1)
            if made is not None:
                number += 1
                yield made


def agreeing(store: TileStore, grid: TileGrid) -> Iterator[tuple[float, Key, Key]]:
    """Pairs of masks of overlapping tiles that are the same object, with their IoU there."""
    recent: dict[int, list[TileMask]] = {}
    for tile in range(len(grid)):
        recent[tile] = store.masks(tile)
        for other in grid.earlier_neighbours(tile):
            yield from _pairs(recent[other], recent[tile], grid)
        recent.pop(tile - grid.columns - 1, None)


def _pairs(
    masks: Sequence[TileMask], others: Sequence[TileMask], grid: TileGrid
) -> list[tuple[float, Key, Key]]:
    """The masks of two tiles that agree, each with one at most."""
    if not masks or not others:
        return []
    overlap = shared(grid.window(masks[0].key[0]), grid.window(others[0].key[0]))
    assert overlap is not None, "neighbours overlap"
    ours, a = _inside(masks, overlap, grid)
    theirs, b = _inside(others, overlap, grid)
    if not ours or not theirs:
        return []
    areas, other_areas = (np.bitwise_count(bits).sum(1, dtype=np.int64) for bits in (a, b))
    pairs = []
    for i, mask in enumerate(ours):
        for j, other in enumerate(theirs):
            if areas[i] * MIN_IOU > other_areas[j] or other_areas[j] * MIN_IOU > areas[i]:
                continue
            if shared(mask.box, other.box) is None:
                continue
            common = int(np.bitwise_count(a[i] & b[j]).sum(dtype=np.int64))
            iou = common / (areas[i] + other_areas[j] - common)
            if iou >= MIN_IOU:
                pairs.append((float(iou), mask.key, other.key))
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    taken: set[Key] = set()
    best = []
    for pair in pairs:
        if taken.isdisjoint(pair[1:]):
            taken.update(pair[1:])
            best.append(pair)
    return best


def _inside(
    masks: Sequence[TileMask], overlap: Box, grid: TileGrid
) -> tuple[list[TileMask], NDArray[np.uint8]]:
    """The masks that lie in an overlap, and their pixels there as bits, a row for each."""
    chosen, rows = [], []
    for mask in masks:
        if shared(mask.box, overlap) is None:
            continue
        pixels = _pixels(mask, overlap, grid)
        if np.count_nonzero(pixels) >= min(MIN_SHARED_AREA, mask.area):
            chosen.append(mask)
            rows.append(np.packbits(pixels))
    return chosen, np.stack(rows) if rows else np.zeros((0, 1), dtype=np.uint8)


def _pixels(mask: TileMask, box: Box, grid: TileGrid) -> NDArray[np.bool_]:
    x, y, _, _ = grid.window(mask.key[0])
    return mask.inside(box, (x, y), grid.side)


def is_cut(mask: TileMask, grid: TileGrid) -> bool:
    """Whether the mask reaches a border of its tile beyond which the scene continues."""
    return _depth(mask, grid) <= BORDER


def _shows_all(mask: TileMask, masks: Sequence[TileMask], grid: TileGrid) -> bool:
    """Whether a mask is not cut and no other mask of the object leaves its tile."""
    window = grid.window(mask.key[0])
    return not is_cut(mask, grid) and all(shared(each.box, window) == each.box for each in masks)


def _depth(mask: TileMask, grid: TileGrid) -> float:
    """Working pixels from the mask to the nearest border of its window inside the scene."""
    window, scene = grid.window(mask.key[0]), grid.scene_box
    distances = [float(grid.side)]
    if window[0] > scene[0]:
        distances.append(mask.box[0] - window[0])
    if window[1] > scene[1]:
        distances.append(mask.box[1] - window[1])
    if window[2] < scene[2]:
        distances.append(window[2] - mask.box[2])
    if window[3] < scene[3]:
        distances.append(window[3] - mask.box[3])
    return min(distances)


def _in_charge(mask: TileMask, grid: TileGrid) -> bool:
    """Whether the middle of the mask's box lies in the cell of its tile."""
    x0, y0, x1, y1 = mask.box
    x, y = (x0 + x1) // 2, (y0 + y1) // 2
    return grid.cells_of((x, y, x + 1, y + 1)) == [mask.key[0]]


def _rank(mask: TileMask, grid: TileGrid) -> tuple[bool, float, int]:
    """Of masks that show an object whole, the greatest counts.

    Whose tile is in charge is asked first, because that is the same in a crop of the scene.
    """
    return _in_charge(mask, grid), _depth(mask, grid), -mask.key[0]


def _object(
    masks: Sequence[TileMask], grid: TileGrid, number: int
) -> tuple[SceneObject, list[Piece]] | None:
    """The object of these masks; None if other tiles are in charge of it."""
    whole = [mask for mask in masks if _shows_all(mask, masks, grid)]
    deciding = [max(whole, key=lambda mask: _rank(mask, grid))] if whole else list(masks)
    parts = _parts(deciding, grid)
    if not parts:
        return None
    if not (whole and len(masks) > 1) and not any(_in_charge(mask, grid) for mask in masks):
        return None
    pieces, area = [], 0
    for cell_number, (box, pixels) in sorted(parts.items()):
        rle = coco_rle.encode(pixels)
        area += int(np.count_nonzero(pixels))
        pieces.append(Piece(cell_number, number, box, rle["counts"]))
    boxes = np.array([piece.box for piece in pieces])
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    best = max(deciding, key=lambda mask: (mask.predicted_iou, -mask.key[0]))
    made = SceneObject(
        id=number,
        box=(int(low[0]), int(low[1]), int(high[0]), int(high[1])),
        area=area,
        predicted_iou=best.predicted_iou,
        stability=best.stability,
        point=best.point,
        tiles=len(masks),
        cut=len(masks) == 1 and not whole,
    )
    return made, pieces


def _parts(masks: Sequence[TileMask], grid: TileGrid) -> dict[int, tuple[Box, NDArray[np.bool_]]]:
    """The pixels of an object in each cell, cropped to their box."""
    by_tile = {mask.key[0]: mask for mask in masks}
    seen: defaultdict[int, list[TileMask]] = defaultdict(list)
    for mask in masks:
        for cell in grid.cells_of(mask.box):
            if cell == mask.key[0] or cell not in by_tile:
                seen[cell].append(mask)
    parts = {}
    for cell, members in seen.items():
        area = shared(_hull([mask.box for mask in members]), grid.cell(cell))
        if area is None:
            continue
        pixels = np.zeros((area[3] - area[1], area[2] - area[0]), dtype=np.bool_)
        for mask in members:
            part = shared(area, mask.box)
            if part is not None:
                rows = slice(part[1] - area[1], part[3] - area[1])
                columns = slice(part[0] - area[0], part[2] - area[0])
                pixels[rows, columns] |= _pixels(mask, part, grid)
        y, x = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        if y.size == 0:
            continue
        cropped = pixels[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        left, top = area[0] + int(x[0]), area[1] + int(y[0])
        parts[cell] = (left, top, left + cropped.shape[1], top + cropped.shape[0]), cropped
    return parts


def _hull(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)
