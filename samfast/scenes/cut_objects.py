"""Objects that a window's border cuts -> the same objects whole, by a second look at them.

The click of a cut object is answered again in a window in whose middle it lies. The new mask counts
if it continues the old one: if it has at least MIN_SHARE of its pixels. An object that another
tile's object covers by then is left out, as of two masks of one tile whose boxes agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.scenes.predict_scene import PromptWindows
from samfast.scenes.scene_prompts import ScenePrompt
from samfast.scenes.tile_grid import Box, TileGrid
from samfast.scenes.tile_masks import shared
from samfast.scenes.tile_store import Piece, SceneObject, TileStore

MIN_SHARE = 0.5
"""Least share of a cut mask's pixels that its continuation has."""


def complete_cut(
    windows: PromptWindows, store: TileStore, grid: TileGrid, box_nms_thresh: float
) -> None:
    """Replace the cut objects of a store by their continuations.

    box_nms_thresh  IoU of two objects' boxes above which the one that was cut is left out
    """
    cut = [each for each in store.objects() if each.cut]
    prompts = [_click(each, grid) for each in cut]
    for number, (made, pieces) in enumerate(_in_order(windows.answer(prompts), len(cut))):
        old = cut[number]
        if not pieces or not _continues(store.pieces_of(old.id), pieces):
            continue
        new = replace(made, id=old.id, point=old.point)
        named = [replace(piece, object=old.id) for piece in pieces]
        doubled = any(
            _box_iou(new.box, other) > box_nms_thresh
            for other in store.boxes_near([piece.cell for piece in named], old.id)
        )
        store.change_object(old.id, None if doubled else (new, named))


def _in_order(
    answers: Iterator[tuple[SceneObject, list[Piece]]], count: int
) -> list[tuple[SceneObject, list[Piece]]]:
    """The answers by their prompts' numbers, whatever the windows' order; none is missing but of
    windows that cannot be read, which have no pieces.
    """
    nothing = SceneObject(0, (0, 0, 0, 0), 0, 0.0, 0.0, (0.0, 0.0), 0, True)
    by_number: list[tuple[SceneObject, list[Piece]]] = [(nothing, [])] * count
    for made, pieces in answers:
        by_number[made.id - 1] = made, pieces
    return by_number


def _click(each: SceneObject, grid: TileGrid) -> ScenePrompt:
    """The click that an object answers, in pixels of the scene."""
    xy = (np.array([each.point]) - grid.offset) * grid.scale
    return ScenePrompt(xy, np.ones(1, dtype=np.int64), None)


def _continues(old: Sequence[Piece], new: Sequence[Piece]) -> bool:
    mine, total = _masks(old), 0
    common = 0
    for box, mask in mine:
        total += int(np.count_nonzero(mask))
        for other_box, other in _masks(new):
            part = shared(box, other_box)
            if part is not None:
                inside = _part(mask, box, part) & _part(other, other_box, part)
                common += int(np.count_nonzero(inside))
    return common >= MIN_SHARE * total


def _masks(pieces: Sequence[Piece]) -> list[tuple[Box, NDArray[np.bool_]]]:
    masks = []
    for piece in pieces:
        x0, y0, x1, y1 = piece.box
        size = [y1 - y0, x1 - x0]
        masks.append((piece.box, coco_rle.decode({"size": size, "counts": piece.runs})))
    return masks


def _part(mask: NDArray[np.bool_], box: Box, part: Box) -> NDArray[np.bool_]:
    return mask[part[1] - box[1] : part[3] - box[1], part[0] - box[0] : part[2] - box[0]]


def _box_iou(a: Box, b: Box) -> float:
    part = shared(a, b)
    if part is None:
        return 0.0
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (part, a, b)]
    return areas[0] / (areas[1] + areas[2] - areas[0])
