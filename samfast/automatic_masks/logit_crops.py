"""Crops of low-resolution logits around the boxes of masks, which wait in place of the whole.

Each of the original's two upscalings interpolates four neighbours. So a pixel inside the box gets
the value that it had, and one outside, which was below the threshold, gets a lower value at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.device.transfer import to_device
from samfast.device.triton_support import has_triton
from samfast.masks.resize_geometry import ResizeGeometry

MARGIN = 2
"""Low-resolution pixels around a box: 3/4 for interpolation, and one for rounding."""


class LogitCropBatch:
    """Crops of low-resolution logits that share memory.

    low_res  (n, h, w) logits, kept until the crops are cut out of them
    index    (N,) the logits that each crop is of
    places   (N, 4) XYXY of each in low-resolution pixels, the last row and column outside
    begins   (N,) offsets in the values: the begin of each crop
    size     (h, w) of the whole logits
    bytes    that the crops take on the device

    Crops are cut out by `cut`, or when their values are first asked for.
    """

    def __init__(
        self, low_res: Tensor, index: NDArray[np.int64], places: NDArray[np.int64]
    ) -> None:
        # The whole logits and the index, until the crops are cut out; then their values and None.
        self._logits = low_res
        self._index: NDArray[np.int64] | None = index
        areas = _areas(places)
        self.places, self.begins = places, areas.cumsum() - areas
        self.size = low_res.shape[1], low_res.shape[2]
        self.device, self.dtype = low_res.device, low_res.dtype
        self.bytes = int(areas.sum()) * low_res.element_size()

    def cut(self) -> None:
        """Copy the crops, and let go of the whole logits."""
        if self._index is not None:
            self._logits = _cut(self._logits, self._index, self.places, self.begins)
            self._index = None

    @property
    def values(self) -> Tensor:
        """(n,), the pixels of each crop row by row, one crop after another."""
        self.cut()
        return self._logits

    def crops(self) -> LogitCrops:
        """All of them, uncopied."""
        count = len(self.places)
        return LogitCrops((self,), np.zeros(count, dtype=np.int64), np.arange(count))


class LogitCrop(NamedTuple):
    """One crop of a batch."""

    batch: LogitCropBatch
    number: int

    @property
    def values(self) -> Tensor:
        """(h, w) of the crop, uncopied."""
        x0, y0, x1, y1 = self.batch.places[self.number].tolist()
        begin = int(self.batch.begins[self.number])
        return self.batch.values[begin : begin + (y1 - y0) * (x1 - x0)].view(y1 - y0, x1 - x0)


@dataclass(frozen=True, eq=False)
class LogitCrops(Sequence[LogitCrop]):
    """Crops of some batches of equal size and dtype, as columns: an image has hundreds, which as
    objects would keep the host busy while the device waits.

    batches  each of which some crop is of; any crop keeps the whole of its batch
    owners   (N,) the index of each crop's batch
    numbers  (N,) the number of each crop in it
    """

    batches: tuple[LogitCropBatch, ...]
    owners: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> LogitCrop: ...

    @overload
    def __getitem__(self, index: slice) -> LogitCrops: ...

    def __getitem__(self, index: int | slice) -> LogitCrop | LogitCrops:
        if isinstance(index, slice):
            return self.pick(np.arange(len(self))[index])
        return LogitCrop(self.batches[self.owners[index]], int(self.numbers[index]))

    def pick(self, index: NDArray[np.int64]) -> LogitCrops:
        """The crops of those indices, in their order."""
        owners = self.owners[index]
        used = np.bincount(owners, minlength=len(self.batches)) > 0
        batches = tuple(compress(self.batches, used))
        return LogitCrops(batches, (used.cumsum() - 1)[owners], self.numbers[index])

    @property
    def bytes(self) -> int:
        """Device memory that they keep, once they are cut out."""
        return sum(each.bytes for each in self.batches)

    def places(self) -> NDArray[np.int64]:
        """(N, 4) places of all, as `LogitCropBatch.places`."""
        return self._column([each.places for each in self.batches])

    def addresses(self) -> NDArray[np.int64]:
        """(N,) addresses of their first values in the device's memory."""
        return self._column(
            [
                each.values.data_ptr() + each.begins * each.values.element_size()
                for each in self.batches
            ]
        )

    def _column(self, columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """The rows of these crops among those of all crops of the batches."""
        firsts = np.array([0, *accumulate(map(len, columns))])
        return np.concatenate(columns)[firsts[self.owners] + self.numbers]


def join(parts: Iterable[LogitCrops]) -> LogitCrops:
    """All crops of the parts, which share no batch, in order."""
    parts = [*parts]
    firsts = [0, *accumulate(len(part.batches) for part in parts)]
    return LogitCrops(
        tuple(batch for part in parts for batch in part.batches),
        np.concatenate([part.owners + first for part, first in zip(parts, firsts, strict=False)]),
        np.concatenate([part.numbers for part in parts]),
    )


def collect(crops: Sequence[LogitCrop]) -> LogitCrops:
    """Single crops as one column."""
    batches = {id(crop.batch): crop.batch for crop in crops}
    indices = {key: index for index, key in enumerate(batches)}
    owners = np.array([indices[id(crop.batch)] for crop in crops], dtype=np.int64)
    numbers = np.array([crop.number for crop in crops], dtype=np.int64)
    return LogitCrops(tuple(batches.values()), owners, numbers)


def memory_of(masks: Sequence[object]) -> int:
    """Bytes kept by those masks that are logit crops."""
    return _among(masks).bytes


def cut(masks: Sequence[object]) -> None:
    """Cut out those masks that are logit crops and still part of whole logits."""
    for batch in _among(masks).batches:
        batch.cut()


def _among(masks: Sequence[object]) -> LogitCrops:
    if isinstance(masks, LogitCrops):
        return masks
    return collect([mask for mask in masks if isinstance(mask, LogitCrop)])


def places_of(
    boxes: NDArray[np.int64], geometry: ResizeGeometry, size: tuple[int, int]
) -> NDArray[np.int64]:
    """(N, 4) places of the logits of size (h, w) on which pixels in the boxes (N, 4) depend.

    boxes  XYXY in pixels of the original image, the last row and column inside
    """
    (inside_h, inside_w), (height, width) = geometry.input_size, geometry.original_size
    x, y = inside_w / width * size[1] / geometry.side, inside_h / height * size[0] / geometry.side
    # Both corners in one pass over few numbers: what takes time is each call of NumPy.
    edges = (boxes + np.array([0, 0, 1, 1])) * np.array([x, y, x, y])
    np.floor(edges[:, :2], out=edges[:, :2])
    np.ceil(edges[:, 2:], out=edges[:, 2:])
    places: NDArray[np.int64] = edges.astype(np.int64)
    places += np.array([-MARGIN, -MARGIN, MARGIN, MARGIN])
    np.maximum(places, 0, out=places)
    np.minimum(places, np.array([size[1], size[0], size[1], size[0]]), out=places)
    return places


def restore(crops: LogitCrops) -> Tensor:
    """(N, h, w) logits of at least one crop, very low outside it."""
    first = crops.batches[0]
    size, low = first.size, lowest(first.dtype)
    if has_triton(first.device):
        from samfast.automatic_masks.kernels.copy_logit_crops import restore as launch

        table = np.column_stack([crops.addresses(), crops.places()])
        return launch(to_device(table, first.device), size, first.dtype, low)
    out = first.values.new_full((len(crops), *size), low)
    for logits, crop, (x0, y0, x1, y1) in zip(out, crops, crops.places().tolist(), strict=True):
        logits[y0:y1, x0:x1] = crop.values
    return out


def lowest(dtype: torch.dtype) -> float:
    """Lower than logits are, and finite after interpolation: zero times infinity would be NaN."""
    return max(-1e30, torch.finfo(dtype).min)


def _cut(
    low_res: Tensor,
    index: NDArray[np.int64],
    places: NDArray[np.int64],
    begins: NDArray[np.int64],
) -> Tensor:
    """Copies of the parts at places (k, 4) of the logits low_res[index] (k, h, w), as values that
    begin there.
    """
    if has_triton(low_res.device) and len(index):
        from samfast.automatic_masks.kernels.copy_logit_crops import cut as launch

        areas = _areas(places)
        table = to_device(np.column_stack([index, begins, places]), low_res.device)
        return launch(low_res, table, int(begins[-1] + areas[-1]), int(areas.max()))
    parts = [
        low_res[i, y0:y1, x0:x1].reshape(-1)
        for i, (x0, y0, x1, y1) in zip(index.tolist(), places.tolist(), strict=True)
    ]
    return torch.cat(parts) if parts else low_res.new_empty(0)


def _areas(places: NDArray[np.int64]) -> NDArray[np.int64]:
    areas: NDArray[np.int64] = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1])
    return areas
