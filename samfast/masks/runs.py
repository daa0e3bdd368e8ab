"""The runs of many masks at once, found on the device the masks are on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samfast.masks.boxes import Box
from samfast.masks.packed import BITS, bits
from samfast.masks.reading import Reading, there
from samfast.types import Size

WORD_BYTES, RUN_BYTES = 1024, 192
"""Memory that finding and writing runs takes: for each word that has a change, for each run."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of N masks in column-major order, one mask after another; of each the first is of zeros, maybe empty.

    lengths  (R,) int64, pixels
    numbers  (N,) int64 on the host, runs of each mask
    size     (height, width) of the masks
    """

    lengths: Tensor
    numbers: NDArray[np.int64]
    size: Size

    def __len__(self) -> int:
        return len(self.numbers)

    def each(self) -> list[Tensor]:
        """N tensors where they are, which share the memory of all."""
        return list(torch.split(self.lengths, self.numbers.tolist()))

    def split(self) -> list[NDArray[np.int64]]:
        """N arrays on the host, as `samfast.masks.rle.encode` gives them; waits for the GPU."""
        return split(Reading(self.lengths)()[0], self.numbers)


def split(lengths: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Runs of masks, one mask after another -> of each its own."""
    return np.split(lengths, np.cumsum(numbers)[:-1]) if len(numbers) else []


def join(each: Sequence[Tensor | NDArray[np.int64]], size: Size) -> Runs:
    """The opposite of `Runs.each` and `Runs.split`: the runs of masks of that size, where they are."""
    numbers = np.array([len(own) for own in each], dtype=np.int64)
    if not each:
        return Runs(torch.zeros(0, dtype=torch.int64), numbers, size)
    return Runs(torch.cat([torch.as_tensor(own) for own in each]), numbers, size)


class Changes:
    """Where the pixels of packed masks change, in column-major order; how often is on its way to the host.

    packed     (N, w, ceil(h / 32)) int32, see `samfast.masks.packed`
    height     h, the masks' rows
    crop,size  where the masks lie in images of that size (height, width), XYXY, false outside of it; None: they are
               the whole
    """

    def __init__(
        self, packed: Tensor, height: int, crop: Box | None = None, size: Size | None = None
    ) -> None:
        if crop is None or size is None:
            crop, size = (0, 0, packed.shape[1], height), (height, packed.shape[1])
        self._left, self._top, right = crop[:3]
        self._size = size
        rows, wraps = height, height == size[0]
        if wraps:
            if right < size[1]:
                packed = F.pad(packed, (0, 0, 0, 1))  # the column after the crop ends what reaches its foot
        else:
            rows += 1  # and here the row below each column does
            if height % BITS == 0:
                packed = F.pad(packed, (0, 1))
        changes = _changes(packed, height, wraps)
        if rows % BITS:
            changes[:, :, -1] &= (1 << (rows % BITS)) - 1
        if not wraps and crop[2:] == (size[1], size[0]) and changes.shape[1]:
            changes[:, -1, -1] &= ~(1 << (height % BITS)) if height % BITS < BITS - 1 else (1 << 31) - 1
            # For there the image ends, and with it whatever reaches the crop's foot.
        self._shape = changes.shape[1:]
        self._changes = changes.flatten(1)
        self._counts = Reading(torch.stack([_ones(self._changes).sum(1), (self._changes != 0).sum(1)]))

    def __len__(self) -> int:
        return len(self._changes)

    def bytes(self) -> NDArray[np.int64]:
        """(N,) what finding each mask's runs and writing them as text takes; waits for the GPU, the first time."""
        runs, words = self._counts()[0]
        taken: NDArray[np.int64] = words * WORD_BYTES + (runs + 1) * RUN_BYTES
        return taken

    def runs(self, start: int = 0, stop: int | None = None) -> Runs:
        """Of the masks from start to stop; waits for the GPU only if nobody has asked how many bytes it takes."""
        numbers, words = self._counts()[0][:, start:stop]
        changes, device = self._changes[start:stop].flatten(), self._changes.device
        columns, rows = self._shape
        changed = _where(changes != 0, int(words.sum()))
        place = changed % (columns * rows)
        first = (self._left + place // rows) * self._size[0] + self._top + place % rows * BITS
        flags = (changes[changed][:, None] >> bits(device)) & 1
        chosen = _where(flags.flatten(), int(numbers.sum()))
        return _between(first[chosen // BITS] + chosen % BITS, numbers, self._size)


def _changes(packed: Tensor, height: int, wraps: bool) -> Tensor:
    """Of each bit whether it differs from the one above it (N, w, words); rows below the masks are of no use.

    wraps  above a column's head is the foot of the column before; otherwise a zero
    """
    carry = F.pad((packed >> (BITS - 1)) & 1, (1, 0))[:, :, :-1]
    if wraps:
        foot = (packed[:, :-1, -1] >> ((height - 1) % BITS)) & 1
        carry[:, 1:, 0] = foot
    return packed ^ ((packed << 1) | carry)


def _ones(words: Tensor) -> Tensor:
    """How many bits of each int32 are set, the sign's too: pairs of bits are added, then fours, then eights."""
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    return (((words + (words >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


def _where(flags: Tensor, count: int) -> Tensor:
    """Indices of those `count` elements (n,) that are not 0: as nonzero, which would wait to learn the number."""
    return torch.repeat_interleave(flags.to(torch.int32), output_size=count).long()


def _between(changes: Tensor, numbers: NDArray[Any], size: Size) -> Runs:
    """Runs between the places (T,) where the pixels of masks change, in order, numbers (N,) of them in each mask."""
    device, count = changes.device, len(numbers)
    ends = there(np.cumsum(numbers + 1), device)
    owner = torch.repeat_interleave(there(numbers, device), output_size=len(changes))
    edges = changes.new_empty(len(changes) + count)  # where each run ends
    edges[torch.arange(len(changes), device=device) + owner] = changes
    edges.index_fill_(0, ends - 1, size[0] * size[1])  # an assignment would wait to copy the number
    starts = F.pad(edges, (1, 0))[:-1]
    starts.index_fill_(0, F.pad(ends, (1, 0))[:-1], 0)
    return Runs(edges - starts, numbers + 1, size)
