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

from samfast.device.transfer import AsyncHostCopy, to_device
from samfast.device.triton_support import has_triton
from samfast.masks.bit_masks import BITS, bits
from samfast.masks.boxes import Box
from samfast.types import Size

WORD_BYTES, RUN_BYTES = 1024, 192
"""Memory that finding and writing runs takes: for each word that has a change, for each run."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of N masks in column-major order, one mask after another; of each the first is of zeros,
    maybe empty.

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
        return split(AsyncHostCopy(self.lengths).wait()[0], self.numbers)


def split(lengths: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Runs of masks, one mask after another -> of each its own."""
    return np.split(lengths, np.cumsum(numbers)[:-1]) if len(numbers) else []


def join(each: Sequence[Tensor | NDArray[np.int64]], size: Size) -> Runs:
    """The opposite of `Runs.each` and `Runs.split`: the runs of masks of that size, where they
    are.
    """
    numbers = np.array([len(own) for own in each], dtype=np.int64)
    if not each:
        return Runs(torch.zeros(0, dtype=torch.int64), numbers, size)
    return Runs(torch.cat([torch.as_tensor(own) for own in each]), numbers, size)


@dataclass(frozen=True)
class PackedMaskLayout:
    """How packed masks lie in an image, and which of their words are looked at for changes.

    height        rows of the masks
    wraps         above a column's head is the foot of the column before, as the masks are as high
                  as the image; otherwise a zero, and what reaches the foot ends in the row below
    across, down  columns, and words of each: one more than the masks have where something ends
                  beyond them
    last, corner  bits that count of each column's last word, and of the very last, as int32
    left, top     where the masks lie in an image of `size` (height, width)
    """

    height: int
    wraps: bool
    across: int
    down: int
    last: int
    corner: int
    left: int
    top: int
    size: Size

    @staticmethod
    def of(packed: Tensor, height: int, crop: Box, size: Size) -> PackedMaskLayout:
        """Of masks (N, w, ceil(height / 32)) in that crop, XYXY."""
        across, down = packed.shape[1:]
        wraps = height == size[0]
        across += wraps and crop[2] < size[1]
        down += not wraps and height % BITS == 0
        rest = (height if wraps else height + 1) % BITS
        # In its last corner the image ends, and with it whatever reaches the crop's foot.
        ends = not wraps and crop[2:] == (size[1], size[0])
        corner = _signed(~(1 << height % BITS)) if ends else -1
        return PackedMaskLayout(
            height,
            wraps,
            across,
            down,
            (1 << rest) - 1 if rest else -1,
            corner,
            crop[0],
            crop[1],
            size,
        )


class Changes:
    """Where the pixels of packed masks change, in column-major order; how often is on its way to
    the host.

    packed     (N, w, ceil(h / 32)) int32, see `samfast.masks.bit_masks`
    height     h, the masks' rows
    crop,size  where the masks lie in images of that size (height, width), XYXY, false outside of
    it; None: they are
               the whole
    """

    def __init__(
        self, packed: Tensor, height: int, crop: Box | None = None, size: Size | None = None
    ) -> None:
        if crop is None or size is None:
            crop, size = (0, 0, packed.shape[1], height), (height, packed.shape[1])
        self._lay = PackedMaskLayout.of(packed, height, crop, size)
        self._blocks: Tensor | None = None
        if has_triton(packed.device):
            from samfast.masks.kernels.run_lengths import count

            self._words = packed.contiguous()
            self._blocks = count(self._words, self._lay)
            self._counts = AsyncHostCopy(self._blocks.sum(2))
        else:
            self._words = changes(packed, self._lay).flatten(1)
            self._counts = AsyncHostCopy(
                torch.stack([_ones(self._words).sum(1), (self._words != 0).sum(1)])
            )

    def __len__(self) -> int:
        return len(self._words)

    def bytes(self) -> NDArray[np.int64]:
        """(N,) what finding each mask's runs and writing them as text takes; waits for the GPU, the
        first time.
        """
        runs, words = self._counts.wait()[0]
        taken: NDArray[np.int64] = words * WORD_BYTES + (runs + 1) * RUN_BYTES
        return taken

    def runs(self, start: int = 0, stop: int | None = None) -> Runs:
        """Of the masks from start to stop; waits for the GPU only if nobody has asked how many
        bytes it takes.
        """
        (numbers, words), lay, own = (
            self._counts.wait()[0][:, start:stop],
            self._lay,
            self._words[start:stop],
        )
        if self._blocks is not None:
            from samfast.masks.kernels.run_lengths import lengths

            found = lengths(own, lay, self._blocks[0, start:stop], int(numbers.sum()))
            return Runs(found, numbers + 1, lay.size)
        flat, device = own.flatten(), own.device
        changed = _where(flat != 0, int(words.sum()))
        place = changed % (lay.across * lay.down)
        first = (lay.left + place // lay.down) * lay.size[0] + lay.top + place % lay.down * BITS
        flags = (flat[changed][:, None] >> bits(device)) & 1
        chosen = _where(flags.flatten(), int(numbers.sum()))
        return _between(first[chosen // BITS] + chosen % BITS, numbers, lay.size)


def changes(packed: Tensor, lay: PackedMaskLayout) -> Tensor:
    """Of each bit whether it differs from the one above it (N, across, down)."""
    packed = F.pad(packed, (0, lay.down - packed.shape[2], 0, lay.across - packed.shape[1]))
    carry = F.pad((packed >> (BITS - 1)) & 1, (1, 0))[:, :, :-1]
    if lay.wraps:
        foot = (packed[:, :-1, -1] >> ((lay.height - 1) % BITS)) & 1
        carry[:, 1:, 0] = foot
    found = packed ^ ((packed << 1) | carry)
    found[:, :, -1] &= lay.last
    found[:, -1:, -1] &= lay.corner
    return found


def _signed(word: int) -> int:
    """As an int32."""
    return (word + (1 << 31)) % (1 << 32) - (1 << 31)


def _ones(words: Tensor) -> Tensor:
    """How many bits of each int32 are set, the sign's too: pairs of bits are added, then fours,
    then eights.
    """
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    return (((words + (words >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


def _where(flags: Tensor, count: int) -> Tensor:
    """Indices of those `count` elements (n,) that are not 0: as nonzero, which would wait to learn
    the number.
    """
    return torch.repeat_interleave(flags.to(torch.int32), output_size=count).long()


def _between(changes: Tensor, numbers: NDArray[Any], size: Size) -> Runs:
    """Runs between the places (T,) where the pixels of masks change, in order, numbers (N,) of them
    in each mask.
    """
    device, count = changes.device, len(numbers)
    ends = to_device(np.cumsum(numbers + 1), device)
    owner = torch.repeat_interleave(to_device(numbers, device), output_size=len(changes))
    edges = changes.new_empty(len(changes) + count)  # where each run ends
    edges[torch.arange(len(changes), device=device) + owner] = changes
    edges.index_fill_(0, ends - 1, size[0] * size[1])  # an assignment would wait to copy the number
    starts = F.pad(edges, (1, 0))[:-1]
    starts.index_fill_(0, F.pad(ends, (1, 0))[:-1], 0)
    return Runs(edges - starts, numbers + 1, size)
