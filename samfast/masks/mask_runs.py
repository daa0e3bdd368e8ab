"""The runs of many packed masks at once, on the masks' device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samfast.device.transfer import AsyncHostCopy, to_device
from samfast.device.triton_support import has_triton
from samfast.masks.bit_masks import BITS, bits, ones
from samfast.masks.boxes import Box
from samfast.types import Size

WORD_BYTES, RUN_BYTES = 1024, 192
"""Memory that computing and writing runs takes, for each word with a change and for each run."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of N masks in column-major order, one mask after another; the first of each is of zeros.

    ends          (R,) int64, the pixel behind each run, counted from the first one of the first
                  mask: the masks follow each other. The first run of a mask may be empty
    counts        (N,) int64 on the host, runs of each mask
    size          (height, width) of the masks, of the largest where they differ
    known_owners  (R,) int32, the mask of each run; None: it follows from the counts
    """

    ends: Tensor
    counts: NDArray[np.int64]
    size: Size
    known_owners: Tensor | None = None

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def owners(self) -> Tensor:
        """(R,) int32, the mask of each run."""
        if self.known_owners is not None:
            return self.known_owners
        owners = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)
        return to_device(owners, self.ends.device)

    @property
    def lengths(self) -> Tensor:
        """(R,) int64, pixels of each run."""
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1))

    def on_device(self) -> list[Tensor]:
        """The lengths of the runs of each mask, views of one tensor."""
        return list(torch.split(self.lengths, self.counts.tolist()))


def split(lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The lengths of all masks' runs, cut into the runs of each."""
    return np.split(lengths, np.cumsum(counts)[:-1]) if len(counts) else []


def join(masks: Sequence[Tensor | NDArray[np.int64]], size: Size) -> Runs:
    """The runs of masks of that size, each (R_i,) lengths, as one `Runs` on their device."""
    counts = np.array([len(runs) for runs in masks], dtype=np.int64)
    if not masks:
        return Runs(torch.zeros(0, dtype=torch.int64), counts, size)
    lengths = torch.cat([torch.as_tensor(runs) for runs in masks])
    return Runs(lengths.cumsum(0), counts, size)


def chunks_within(sizes: NDArray[np.int64], budget: int) -> Iterator[tuple[int, int]]:
    """Bounds of consecutive chunks of at most `budget` bytes; a larger element is one alone."""
    start = 0
    while start < len(sizes):
        fit = int(np.searchsorted(np.cumsum(sizes[start:]), budget, side="right"))
        stop = start + max(1, fit)
        yield start, stop
        start = stop


@dataclass(frozen=True)
class PackedMaskLayout:
    """The place of packed masks in an image, and which of their words can hold changes.

    height        rows of the masks
    wraps         the masks are as high as the image, so that a run continues from the bottom of one
                  column to the top of the next; otherwise each column begins after a zero, and a
                  run that reaches its bottom ends in the row below
    across, down  columns, and words of each: one more than the masks have where a run ends beyond
                  them
    last, corner  valid bits of each column's last word, and of the very last word, as int32
    left, top     of the masks in an image of `size` (height, width)
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
        # A run that reaches the image's last pixel has no end behind it.
        at_corner = not wraps and crop[2:] == (size[1], size[0])
        return PackedMaskLayout(
            height=height,
            wraps=wraps,
            across=across,
            down=down,
            last=(1 << rest) - 1 if rest else -1,
            corner=_signed(~(1 << height % BITS)) if at_corner else -1,
            left=crop[0],
            top=crop[1],
            size=size,
        )


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks of one size, a bit a pixel, and their place in an image.

    words  (N, w, ceil(h / 32)) int32, contiguous, see `samfast.masks.bit_masks`
    """

    words: Tensor
    layout: PackedMaskLayout

    @staticmethod
    def of(
        packed: Tensor, height: int, crop: Box | None = None, size: Size | None = None
    ) -> PackedMasks:
        """Of packed masks of that height.

        crop, size  the masks' place XYXY in images of that size (height, width), which are false
                    outside the crop; None: the masks are as large as the image
        """
        if crop is None or size is None:
            crop, size = (0, 0, packed.shape[1], height), (height, packed.shape[1])
        return PackedMasks(packed.contiguous(), PackedMaskLayout.of(packed, height, crop, size))

    def __len__(self) -> int:
        return len(self.words)

    @property
    def pixels(self) -> int:
        """Of an image."""
        return self.layout.size[0] * self.layout.size[1]


class PixelChanges:
    """The places at which the pixels of packed masks change, in column-major order.

    groups  at least one, each of masks of one size

    Changes are counted, and the counts copied to the host, when an object is made: those of all
    groups together, and so are their runs made and written.
    """

    def __init__(self, *groups: PackedMasks) -> None:
        self._groups, self._by_kernel = groups, has_triton(groups[0].words.device)
        # Of each group the counts of each block of a mask, or the changes themselves.
        self._counted: list[Tensor] = []
        counts = []
        for group in groups:
            if self._by_kernel:
                from samfast.masks.kernels.run_ends import count

                self._counted.append(count(group))
                counts.append(self._counted[-1].sum(2))
            else:
                words = changed_bits(group.words, group.layout).flatten(1)
                self._counted.append(words)
                counts.append(torch.stack([ones(words).sum(1), (words != 0).sum(1)]))
        self._counts = AsyncHostCopy(counts[0] if len(counts) == 1 else torch.cat(counts, 1))

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def bytes(self) -> NDArray[np.int64]:
        """(N,) memory that each mask's runs and their text take; waits for the counts."""
        changes, words = self._counts.wait()[0]
        taken: NDArray[np.int64] = words * WORD_BYTES + (changes + 1) * RUN_BYTES
        return taken

    def runs(self, start: int = 0, stop: int | None = None) -> Runs:
        """The runs of the masks from start to stop; waits for the counts unless `bytes` has."""
        stop = len(self) if stop is None else stop
        changes, changed_words = self._counts.wait()[0][:, start:stop]
        counts, device = changes + 1, self._groups[0].words.device
        ends = torch.empty(int(counts.sum()), dtype=torch.int64, device=device)
        owners = torch.empty(len(ends), dtype=torch.int32, device=device)
        mask = run = pixel = 0  # with which a group begins, among all that are asked for
        for part, counted in self._parts(start, stop):
            masks = slice(mask, mask + len(part))
            stop_run = run + int(counts[masks].sum())
            if self._by_kernel:
                from samfast.masks.kernels.run_ends import write_ends

                write_ends(part, counted[0], ends, owners, (run, pixel, mask))
            else:
                made, owner = _ends_of(part, counted, changes[masks], changed_words[masks])
                ends[run:stop_run] = made + pixel
                owners[run:stop_run] = owner + mask
            mask, run, pixel = masks.stop, stop_run, pixel + len(part) * part.pixels
        largest = max(self._groups, key=lambda group: group.pixels)
        return Runs(ends, counts, largest.layout.size, owners)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[PackedMasks, Tensor]]:
        """The masks from start to stop, group by group, and what was counted of them."""
        first = 0
        for group, counted in zip(self._groups, self._counted, strict=True):
            begin, end = max(start - first, 0), min(stop - first, len(group))
            if begin < end:
                masks = slice(begin, end)
                yield (
                    PackedMasks(group.words[masks], group.layout),
                    counted[:, masks] if self._by_kernel else counted[masks],
                )
            first += len(group)


def changed_bits(packed: Tensor, layout: PackedMaskLayout) -> Tensor:
    """Whether each bit differs from the one above it (N, across, down)."""
    packed = F.pad(packed, (0, layout.down - packed.shape[2], 0, layout.across - packed.shape[1]))
    carry = F.pad((packed >> (BITS - 1)) & 1, (1, 0))[:, :, :-1]
    if layout.wraps:
        carry[:, 1:, 0] = (packed[:, :-1, -1] >> ((layout.height - 1) % BITS)) & 1
    changed = packed ^ ((packed << 1) | carry)
    changed[:, :, -1] &= layout.last
    changed[:, -1:, -1] &= layout.corner
    return changed


def _signed(word: int) -> int:
    """The word as an int32."""
    return (word + (1 << 31)) % (1 << 32) - (1 << 31)


def _nonzero(flags: Tensor, count: int) -> Tensor:
    """Indices of the `count` elements (n,) that are not 0, without waiting for their number."""
    return torch.repeat_interleave(flags.to(torch.int32), output_size=count).long()


def _ends_of(
    group: PackedMasks, words: Tensor, changes: NDArray[Any], changed_words: NDArray[Any]
) -> tuple[Tensor, Tensor]:
    """The ends and owners of the runs of N masks, as `Runs` has them.

    words    their changes, a bit each
    changes  (N,), and changed_words: how many they are, and words that have any
    """
    layout, device = group.layout, words.device
    flat = words.flatten()
    index = _nonzero(flat != 0, int(changed_words.sum()))
    place = index % (layout.across * layout.down)
    column, word = layout.left + place // layout.down, place % layout.down
    first = column * layout.size[0] + layout.top + word * BITS
    flags = (flat[index][:, None] >> bits(device)) & 1
    bit = _nonzero(flags.flatten(), int(changes.sum()))
    pixel = first[bit // BITS] + bit % BITS
    number = torch.arange(len(group), device=device)
    counts = to_device(changes, device)
    changing = torch.repeat_interleave(number, counts, output_size=len(pixel))
    ends = pixel.new_empty(len(pixel) + len(group))
    # Each mask before has one end more than changes.
    ends[torch.arange(len(pixel), device=device) + changing] = pixel + changing * group.pixels
    ends[counts.cumsum(0) + number] = (number + 1) * group.pixels
    return ends, torch.repeat_interleave(number, counts + 1, output_size=len(ends))
