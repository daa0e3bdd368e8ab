"""What is kept of a mask's logits while it waits: the part around its box, on which alone its
pixels depend.

Both of the original's upscalings take a value between four neighbours. So a pixel inside the box
sees what it saw, and one outside, which was below the threshold, sees values that are lower at
most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.device.transfer import to_device
from samfast.device.triton_support import has_triton
from samfast.masks.resize_geometry import ResizeGeometry

MARGIN = 2
"""Low-resolution pixels around a box: 3/4 and a whole one for rounding."""


@dataclass(frozen=True, eq=False)
class LogitCropBatch:
    """Parts of low-resolution logits, which share memory.

    values  (n,), of one part after another the pixels row by row
    places  (N, 4) XYXY of each in low-resolution pixels, the latter two outside
    size    (h, w) of the wholes
    """

    values: Tensor
    places: NDArray[np.int64]
    size: tuple[int, int]

    @cached_property
    def begins(self) -> list[int]:
        """N + 1 of them: where each part begins in the values, and where the last ends."""
        return [0, *_areas(self.places).cumsum().tolist()]

    def bytes(self) -> int:
        """Memory that they take."""
        return self.values.numel() * self.values.element_size()

    def each(self) -> list[LogitCrop]:
        """The parts."""
        return [LogitCrop(self, number) for number in range(len(self.places))]


class LogitCrop(NamedTuple):
    """A part of low-resolution logits, one of a block's: so that a thousand are made and dropped
    for little.
    """

    block: LogitCropBatch
    number: int

    @property
    def values(self) -> Tensor:
        """(n,), its pixels row by row, uncopied."""
        begins = self.block.begins
        return self.block.values[begins[self.number] : begins[self.number + 1]]


def held(masks: Iterable[object]) -> int:
    """Bytes that those of them that are cutouts keep: a block stays whole while one of its parts
    does.
    """
    blocks = {id(mask.block): mask.block for mask in masks if isinstance(mask, LogitCrop)}
    return sum(block.bytes() for block in blocks.values())


def around(
    boxes: NDArray[np.int64], frame: ResizeGeometry, size: tuple[int, int]
) -> NDArray[np.int64]:
    """(N, 4) places of the logits of size (h, w) that pixels in boxes (N, 4) depend on.

    boxes  XYXY in pixels of the original image, the last row and column inside
    """
    (inside_h, inside_w), (height, width) = frame.input_size, frame.original_size
    scale = np.array([inside_w / width * size[1], inside_h / height * size[0]]) / frame.side
    first = np.floor(boxes[:, :2] * scale).astype(np.int64) - MARGIN
    last = np.ceil((boxes[:, 2:] + 1) * scale).astype(np.int64) + MARGIN
    return np.concatenate([first.clip(min=0), last.clip(max=[size[1], size[0]])], axis=1)


def cut(low_res: Tensor, index: NDArray[np.int64], places: NDArray[np.int64]) -> LogitCropBatch:
    """Of low_res (n, h, w) the parts at places (k, 4) of those of index (k,), copied."""
    size = (low_res.shape[1], low_res.shape[2])
    if has_triton(low_res.device) and len(index):
        from samfast.automatic_masks.kernels.copy_logit_crops import cut as launch

        values = launch(low_res, to_device(table(places, index), low_res.device), *_room(places))
    else:
        parts = [
            low_res[i, y0:y1, x0:x1].reshape(-1)
            for i, (x0, y0, x1, y1) in zip(index.tolist(), places.tolist(), strict=True)
        ]
        values = torch.cat(parts) if parts else low_res.new_empty(0)
    return LogitCropBatch(values, places, size)


def joined(cutouts: Sequence[LogitCrop]) -> LogitCropBatch:
    """Parts of one size, at least one, as a block of their own: copied, unless they are all of
    theirs.
    """
    first = cutouts[0].block
    if [*cutouts] == first.each():
        return first
    values = torch.cat([each.values for each in cutouts])
    return LogitCropBatch(
        values, np.stack([each.block.places[each.number] for each in cutouts]), first.size
    )


def whole(block: LogitCropBatch) -> Tensor:
    """(N, h, w) logits, very low where nothing was kept; of at least one."""
    values, places, low = block.values, block.places, lowest(block.values.dtype)
    if has_triton(values.device):
        from samfast.automatic_masks.kernels.copy_logit_crops import whole as launch

        return launch(values, to_device(table(places), values.device), block.size, low)
    made = values.new_full((len(places), *block.size), low)
    for own, each, (x0, y0, x1, y1) in zip(made, block.each(), places.tolist(), strict=True):
        own[y0:y1, x0:x1] = each.values.view(y1 - y0, x1 - x0)
    return made


def lowest(dtype: torch.dtype) -> float:
    """Lower than logits are, and still finite as a sum of shares, as zero times infinity would be
    NaN.
    """
    return max(-1e30, torch.finfo(dtype).min)


def table(places: NDArray[np.int64], index: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """(N, 6): which of the wholes, where the part begins in the values, and its place."""
    areas = _areas(places)
    begins = areas.cumsum() - areas
    own = np.arange(len(places)) if index is None else index
    return np.column_stack([own, begins, places])


def _room(places: NDArray[np.int64]) -> tuple[int, int]:
    """Values of all parts, and of the largest."""
    areas = _areas(places)
    return int(areas.sum()), int(areas.max())


def _areas(places: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1])
    return found
