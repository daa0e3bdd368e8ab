"""What is kept of a mask's logits while it waits: the part around its box, on which alone its pixels depend.

Both of the original's upscalings take a value between four neighbours. So a pixel inside the box sees what it saw,
and one outside, which was below the threshold, sees values that are lower at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.masks.boxes import Box
from samfast.masks.frame import Frame
from samfast.masks.op import fused
from samfast.masks.reading import there

MARGIN = 2
"""Low-resolution pixels around a box: 3/4 and a whole one for rounding."""


class Cutout(NamedTuple):
    """A part of low-resolution logits.

    values  (n,), its pixels row by row
    place   XYXY in low-resolution pixels, the latter two outside
    size    (h, w) of the whole
    """

    values: Tensor
    place: Box
    size: tuple[int, int]

    def bytes(self) -> int:
        """Memory that it takes."""
        return self.values.numel() * self.values.element_size()


def around(boxes: NDArray[np.int64], frame: Frame, size: tuple[int, int]) -> NDArray[np.int64]:
    """(N, 4) places of the logits of size (h, w) that pixels in boxes (N, 4) depend on.

    boxes  XYXY in pixels of the original image, the last row and column inside
    """
    (inside_h, inside_w), (height, width) = frame.input_size, frame.original_size
    scale = np.array([inside_w / width * size[1], inside_h / height * size[0]]) / frame.side
    first = np.floor(boxes[:, :2] * scale).astype(np.int64) - MARGIN
    last = np.ceil((boxes[:, 2:] + 1) * scale).astype(np.int64) + MARGIN
    return np.concatenate([first.clip(min=0), last.clip(max=[size[1], size[0]])], axis=1)


def cut(low_res: Tensor, index: NDArray[np.int64], places: NDArray[np.int64]) -> list[Cutout]:
    """Of low_res (n, h, w) the parts at places (k, 4) of those of index (k,); they share memory of their own."""
    size = (low_res.shape[1], low_res.shape[2])
    if fused(low_res.device) and len(index):
        from samfast.masks.kernels.cutouts import cut as launch

        values = launch(low_res, there(table(places, index), low_res.device), *_room(places))
    else:
        parts = [
            low_res[i, y0:y1, x0:x1].reshape(-1)
            for i, (x0, y0, x1, y1) in zip(index.tolist(), places.tolist(), strict=True)
        ]
        values = torch.cat(parts) if parts else low_res.new_empty(0)
    return _split(values, [(x0, y0, x1, y1) for x0, y0, x1, y1 in places.tolist()], size)


def copied(cutouts: Sequence[Cutout]) -> list[Cutout]:
    """The same in memory of their own, which they share; at least one, all of one size."""
    values = torch.cat([each.values for each in cutouts])
    return _split(values, [each.place for each in cutouts], cutouts[0].size)


def whole(cutouts: Sequence[Cutout]) -> Tensor:
    """(N, h, w) logits, very low where nothing was kept; of at least one, all of one size."""
    values = torch.cat([each.values for each in cutouts])
    places = np.array([each.place for each in cutouts], dtype=np.int64)
    size, low = cutouts[0].size, lowest(values.dtype)
    if fused(values.device):
        from samfast.masks.kernels.cutouts import whole as launch

        return launch(values, there(table(places), values.device), size, low)
    made = values.new_full((len(cutouts), *size), low)
    for own, each in zip(made, _split(values, [each.place for each in cutouts], size), strict=True):
        x0, y0, x1, y1 = each.place
        own[y0:y1, x0:x1] = each.values.view(y1 - y0, x1 - x0)
    return made


def lowest(dtype: torch.dtype) -> float:
    """Lower than logits are, and still finite as a sum of shares, as zero times infinity would be NaN."""
    return max(-1e30, torch.finfo(dtype).min)


def _split(values: Tensor, places: Sequence[Box], size: tuple[int, int]) -> list[Cutout]:
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in places]
    parts = torch.split(values, areas) if areas else ()
    return [Cutout(part, place, size) for part, place in zip(parts, places, strict=True)]


def table(places: NDArray[np.int64], index: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """(N, 6): which of the wholes, where the part begins in the values, and its place."""
    areas = _areas(places)
    begins = np.array([0, *accumulate(areas[:-1].tolist())], dtype=np.int64)
    own = np.arange(len(places)) if index is None else index
    return np.column_stack([own, begins, places])


def _room(places: NDArray[np.int64]) -> tuple[int, int]:
    """Values of all parts, and of the largest."""
    areas = _areas(places)
    return int(areas.sum()), int(areas.max())


def _areas(places: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1])
    return found
