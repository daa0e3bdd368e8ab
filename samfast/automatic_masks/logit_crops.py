"""Crops of low-resolution logits around the boxes of masks, which wait in place of the whole.

Each of the original's two upscalings interpolates four neighbours. So a pixel inside the box gets
the value that it had, and one outside, which was below the threshold, gets a lower value at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.device.transfer import to_device
from samfast.device.triton_support import has_triton
from samfast.masks.resize_geometry import ResizeGeometry

T = TypeVar("T")

MARGIN = 2
"""Low-resolution pixels around a box: 3/4 for interpolation, and one for rounding."""


@dataclass(frozen=True, eq=False)
class LogitCropBatch:
    """Crops of low-resolution logits that share memory.

    values  (n,), the pixels of each crop row by row, one crop after another
    places  (N, 4) XYXY of each in low-resolution pixels, the last row and column outside
    size    (h, w) of the whole logits
    """

    values: Tensor
    places: NDArray[np.int64]
    size: tuple[int, int]

    @cached_property
    def begins(self) -> list[int]:
        """N + 1 offsets in the values: the begin of each crop, and the end of the last."""
        return [0, *_areas(self.places).cumsum().tolist()]

    def crops(self) -> list[LogitCrop]:
        """The crops, uncopied."""
        return [LogitCrop(self, number) for number in range(len(self.places))]


class LogitCrop(NamedTuple):
    """One crop of a batch, cheap to make and to drop."""

    batch: LogitCropBatch
    number: int

    @property
    def values(self) -> Tensor:
        """(n,), the pixels row by row, uncopied."""
        begins = self.batch.begins
        return self.batch.values[begins[self.number] : begins[self.number + 1]]


def memory_of(masks: Iterable[object]) -> int:
    """Bytes kept by those masks that are logit crops; any crop keeps its whole batch."""
    batches = {id(mask.batch): mask.batch for mask in masks if isinstance(mask, LogitCrop)}
    return sum(b.values.numel() * b.values.element_size() for b in batches.values())


def places_of(
    boxes: NDArray[np.int64], geometry: ResizeGeometry, size: tuple[int, int]
) -> NDArray[np.int64]:
    """(N, 4) places of the logits of size (h, w) on which pixels in the boxes (N, 4) depend.

    boxes  XYXY in pixels of the original image, the last row and column inside
    """
    (inside_h, inside_w), (height, width) = geometry.input_size, geometry.original_size
    scale = np.array([inside_w / width * size[1], inside_h / height * size[0]]) / geometry.side
    first = np.floor(boxes[:, :2] * scale).astype(np.int64) - MARGIN
    last = np.ceil((boxes[:, 2:] + 1) * scale).astype(np.int64) + MARGIN
    return np.concatenate([first.clip(min=0), last.clip(max=[size[1], size[0]])], axis=1)


def cut(low_res: Tensor, index: NDArray[np.int64], places: NDArray[np.int64]) -> LogitCropBatch:
    """Copies of the parts at places (k, 4) of the logits low_res[index] (k, h, w)."""
    size = (low_res.shape[1], low_res.shape[2])
    if has_triton(low_res.device) and len(index):
        from samfast.automatic_masks.kernels.copy_logit_crops import cut as launch

        areas = _areas(places)
        crops = to_device(table(places, index), low_res.device)
        values = launch(low_res, crops, int(areas.sum()), int(areas.max()))
    else:
        parts = [
            low_res[i, y0:y1, x0:x1].reshape(-1)
            for i, (x0, y0, x1, y1) in zip(index.tolist(), places.tolist(), strict=True)
        ]
        values = torch.cat(parts) if parts else low_res.new_empty(0)
    return LogitCropBatch(values, places, size)


def join(crops: Sequence[LogitCrop]) -> LogitCropBatch:
    """Crops of one size, at least one, as a batch; copied unless they are all crops of theirs."""
    first = crops[0].batch
    if [*crops] == first.crops():
        return first
    values = torch.cat([crop.values for crop in crops])
    places = np.stack([crop.batch.places[crop.number] for crop in crops])
    return LogitCropBatch(values, places, first.size)


def compact(masks: Sequence[T]) -> list[T]:
    """The masks, with those that are logit crops copied to a batch that no other mask keeps."""
    crops = [mask for mask in masks if isinstance(mask, LogitCrop)]
    copies: Iterator[Any] = iter(join(crops).crops() if crops else [])
    return [next(copies) if isinstance(mask, LogitCrop) else mask for mask in masks]


def restore(batch: LogitCropBatch) -> Tensor:
    """(N, h, w) logits of at least one crop, very low outside it."""
    values, places, low = batch.values, batch.places, lowest(batch.values.dtype)
    if has_triton(values.device):
        from samfast.automatic_masks.kernels.copy_logit_crops import restore as launch

        return launch(values, to_device(table(places), values.device), batch.size, low)
    out = values.new_full((len(places), *batch.size), low)
    for logits, crop, (x0, y0, x1, y1) in zip(out, batch.crops(), places.tolist(), strict=True):
        logits[y0:y1, x0:x1] = crop.values.view(y1 - y0, x1 - x0)
    return out


def lowest(dtype: torch.dtype) -> float:
    """Lower than logits are, and finite after interpolation: zero times infinity would be NaN."""
    return max(-1e30, torch.finfo(dtype).min)


def table(places: NDArray[np.int64], index: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """(N, 6) for the kernels: each crop's logits, its begin in the values, and its place."""
    areas = _areas(places)
    begins = areas.cumsum() - areas
    return np.column_stack([np.arange(len(places)) if index is None else index, begins, places])


def _areas(places: NDArray[np.int64]) -> NDArray[np.int64]:
    areas: NDArray[np.int64] = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1])
    return areas
