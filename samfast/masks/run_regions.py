"""Small holes and islands of many masks at once, found and removed in their runs.

The results are those of `samfast.masks.regions.remove_small`, holes first, then islands, without a
pixel array. The masks lie side by side, and a pixel's place is counted down the columns through
all of them. Runs are cut into pieces: a piece is a part of one column, or consecutive columns that
are all of one value. Pieces of one value that touch, at corners too, are neighbours in a graph
whose connected components are the regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from samfast.types import Size

MAX_RUNS = 1 << 17
"""Runs that are worked on at once, which takes 12 MiB; a mask that has more is taken alone."""

Places = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CleanedMasks:
    """N masks without small regions.

    runs       N arrays of run lengths; of an unchanged mask the array that was given
    boxes      (N, 4) int64 XYXY, the last pixel included; zeros for an empty mask
    area       (N,) int64, pixels
    unchanged  (N,) whether a mask had no small region
    """

    runs: list[NDArray[np.int64]]
    boxes: NDArray[np.int64]
    area: NDArray[np.int64]
    unchanged: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Consecutive pieces that together cover all pixels of N masks.

    starts   (P,) place of the first pixel
    lengths  (P,) pixels
    is_set   (P,) whether they are of the mask
    """

    starts: Places
    lengths: Places
    is_set: Flags


def remove_small(masks: Sequence[NDArray[np.int64]], size: Size, area: float) -> CleanedMasks:
    """Fill holes, then drop islands, of fewer pixels than `area`. Regions touch at corners too.

    masks  N arrays of run lengths, column by column, the first of zeros (`samfast.masks.rle`);
           each fills the size
    size   (height, width), both at least 1

    If all islands of a mask are small, the largest stays, and the mask counts as changed.

        >>> ring = np.array([0, 4, 1, 4])  # 3 x 3 pixels, of which the middle one is a hole
        >>> remove_small([ring], (3, 3), area=2).runs
        [array([0, 9])]
    """
    counts = np.array([len(runs) for runs in masks], dtype=np.int64)
    # Masks are taken together whose first runs lie in the same part of all runs.
    parts = np.diff((np.cumsum(counts) - counts) // MAX_RUNS, prepend=-1).nonzero()[0].tolist()
    cleaned = [
        _remove_small(masks[start:stop], size, area)
        for start, stop in pairwise([*parts, len(masks)])
    ]
    if len(cleaned) == 1:
        return cleaned[0]
    return CleanedMasks(
        [runs for part in cleaned for runs in part.runs],
        np.concatenate([np.zeros((0, 4), dtype=np.int64), *(part.boxes for part in cleaned)]),
        np.concatenate([np.zeros(0, dtype=np.int64), *(part.area for part in cleaned)]),
        np.concatenate([np.zeros(0, dtype=bool), *(part.unchanged for part in cleaned)]),
    )


def _remove_small(masks: Sequence[NDArray[np.int64]], size: Size, area: float) -> CleanedMasks:
    """As `remove_small`, of at least one mask, all at once."""
    pixels, count = size[0] * size[1], len(masks)
    pieces = _cut(*_read(masks, pixels), size, count)
    changed = np.zeros(count, dtype=bool)

    index = np.flatnonzero(~pieces.is_set)
    areas = _regions(pieces, index, size)[1]
    filled = index[areas < area]
    if len(filled):
        changed[pieces.starts[filled] // pixels] = True
        is_set = pieces.is_set.copy()
        is_set[filled] = True
        pieces = _pieces(*_merge(pieces.starts, is_set, size[0]), size, count)

    index = np.flatnonzero(pieces.is_set)
    labels, areas = _regions(pieces, index, size)
    small = areas < area
    if small.any():
        owners = pieces.starts[index] // pixels
        changed[owners[small]] = True
        all_small = np.bincount(owners[~small], minlength=count) == 0
        among = np.flatnonzero(all_small[owners])
        small[among] = ~_is_largest(pieces.starts[index[among]], labels[among], areas[among], size)
        is_set = pieces.is_set.copy()
        is_set[index[small]] = False
        pieces = _Pieces(pieces.starts, pieces.lengths, is_set)

    boxes, total = _measure(pieces, size, count)
    return CleanedMasks(_write(pieces, masks, changed, pixels), boxes, total, ~changed)


def _read(masks: Sequence[NDArray[np.int64]], pixels: int) -> tuple[Places, Flags]:
    """Places at which the runs of all masks start, and whether they are set."""
    counts = np.array([len(runs) for runs in masks])
    lengths = np.concatenate(masks)
    first = np.cumsum(counts) - counts
    is_set = (np.arange(len(lengths)) - np.repeat(first, counts)) % 2 == 1
    starts = np.cumsum(lengths) - lengths
    filled = lengths > 0
    return _merge(starts[filled], is_set[filled], pixels)


def _merge(starts: Places, is_set: Flags, apart: int) -> tuple[Places, Flags]:
    """Join runs of one value that follow each other, but not across multiples of `apart`: the
    pixels of a mask, or those of a column.
    """
    differs = np.ones(len(starts), dtype=bool)
    differs[1:] = (is_set[1:] != is_set[:-1]) | (starts[1:] % apart == 0)
    return starts[differs], is_set[differs]


def _cut(starts: Places, is_set: Flags, size: Size, count: int) -> _Pieces:
    """Cut runs into the end of a column, whole columns, and the beginning of a column."""
    height, width = size
    bounds = np.append(starts, height * width * count)
    column_starts = bounds // height * height
    stops, whole_stop = bounds[1:], column_starts[1:]
    whole_start = column_starts[:-1] + height * (starts > column_starts[:-1])
    has_whole = whole_start < whole_stop
    cuts = np.stack([starts, whole_start, whole_stop], axis=1)
    used = np.ones(cuts.shape, dtype=bool)
    used[:, 1] = (starts < whole_start) & (whole_start < stops)
    used[:, 2] = has_whole & (whole_stop < stops)
    repeats = 1 + used[:, 1].astype(np.int64) + used[:, 2]
    return _pieces(cuts[used], np.repeat(is_set, repeats), size, count)


def _pieces(starts: Places, is_set: Flags, size: Size, count: int) -> _Pieces:
    """Pieces that start there, each up to the next."""
    return _Pieces(starts, np.diff(starts, append=size[0] * size[1] * count), is_set)


def _regions(pieces: _Pieces, index: Places, size: Size) -> tuple[Places, NDArray[np.float64]]:
    """The region of each of those pieces, all of one value, as a label, and its pixels."""
    lengths = pieces.lengths[index]
    labels = _components(*_right_neighbours(pieces.starts[index], lengths, size))
    areas: NDArray[np.float64] = np.bincount(labels, weights=lengths).astype(np.float64)
    return labels, areas[labels]


def _right_neighbours(starts: Places, lengths: Places, size: Size) -> tuple[Places, Places]:
    """The pieces from `first` to before `stop` touch a piece from the next column.

    In these places a row is left free below each column and a column beside each mask, so that
    neither a corner below a column nor the next mask is touched.
    """
    height, width = size
    stride = height + 1
    tops = starts + starts // height + starts // (height * width) * stride
    bottoms = tops + lengths + np.maximum(lengths // height - 1, 0)
    last_tops = np.maximum(tops, bottoms - height)
    first = np.searchsorted(bottoms, last_tops + (stride - 1), side="right")
    stop = np.searchsorted(tops, bottoms + (stride + 1), side="left")
    return first, stop


def _components(first: Places, stop: Places) -> Places:
    """Label P nodes by connected component: node i is joined to the nodes from first[i] to before
    stop[i], all of them after i.
    """
    nodes = np.arange(len(first))
    # Each node points to its first neighbour: a forest, whose trees the other edges join.
    parents = _roots(np.where(first < stop, first, nodes))
    branches = np.flatnonzero(stop - first > 1)
    more = stop[branches] - first[branches] - 1
    within = np.arange(more.sum()) - np.repeat(np.cumsum(more) - more, more)
    left = parents[np.repeat(branches, more)]
    right = parents[np.repeat(first[branches] + 1, more) + within]
    while len(left):
        apart = left != right
        left, right = left[apart], right[apart]
        np.minimum.at(parents, np.maximum(left, right), np.minimum(left, right))
        ends = np.unique(np.concatenate([left, right]))
        while not np.array_equal(above := parents[parents[ends]], parents[ends]):
            parents[ends] = above
        left, right = parents[left], parents[right]
    return _roots(parents)


def _roots(parents: Places) -> Places:
    """The root of each node of a forest, by pointer jumping."""
    while not np.array_equal(above := parents[parents], parents):
        parents = above
    return parents


def _is_largest(starts: Places, labels: Places, areas: NDArray[np.float64], size: Size) -> Flags:
    """Which pieces belong to the largest region of their mask.

    Of equals OpenCV's first, in the order of 2x2 pixel blocks.
    """
    height, width = size
    owners, place = np.divmod(starts, height * width)
    columns, rows = np.divmod(place, height)
    order = np.lexsort((columns // 2, rows // 2, -areas, owners))
    _, first = np.unique(owners[order], return_index=True)
    return np.isin(labels, labels[order[first]])


def _measure(
    pieces: _Pieces, size: Size, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The box and the area of each mask."""
    height, width = size
    starts, lengths = pieces.starts[pieces.is_set], pieces.lengths[pieces.is_set]
    boxes = np.zeros((count, 4), dtype=np.int64)
    area = np.zeros(count, dtype=np.int64)
    if len(starts):
        owners = starts // (height * width)
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        last = np.append(first[1:], len(starts)) - 1
        tops = starts % height
        present = owners[first]
        boxes[present, 0] = starts[first] // height % width
        boxes[present, 1] = np.minimum.reduceat(tops, first)
        boxes[present, 2] = (starts[last] + lengths[last] - 1) // height % width
        boxes[present, 3] = np.maximum.reduceat(np.minimum(tops + lengths, height), first) - 1
        area[present] = np.add.reduceat(lengths, first)
    return boxes, area


def _write(
    pieces: _Pieces, masks: Sequence[NDArray[np.int64]], changed: Flags, pixels: int
) -> list[NDArray[np.int64]]:
    """The runs of each mask, anew for the changed ones."""
    runs = list(masks)
    index = np.flatnonzero(changed)
    if len(index):
        inside = changed[pieces.starts // pixels]
        starts, is_set = _merge(pieces.starts[inside], pieces.is_set[inside], pixels)
        owners, starts = np.divmod(starts, pixels)
        bounds = np.searchsorted(owners, np.append(index, len(masks)))
        for mask, begin, end in zip(index.tolist(), bounds[:-1], bounds[1:], strict=True):
            lengths = np.diff(starts[begin:end], append=pixels)
            # A mask that begins with a one has an empty first run.
            runs[mask] = np.concatenate([[0], lengths]) if is_set[begin] else lengths
    return runs
