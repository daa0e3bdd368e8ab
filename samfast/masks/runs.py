"""The runs of many masks at once, found on the device the masks are on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samfast.masks.boxes import Box
from samfast.masks.packed import BITS, bits
from samfast.types import Size


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of N masks in column-major order, one mask after another; of each the first is of zeros, maybe empty.

    lengths  (R,) int64, pixels
    ends     (N,) int64: mask i has lengths[ends[i - 1] : ends[i]]
    size     (height, width) of the masks
    """

    lengths: Tensor
    ends: Tensor
    size: Size

    def __len__(self) -> int:
        return len(self.ends)

    def counts(self) -> Tensor:
        """(N,) int64, runs of each mask."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    def split(self) -> list[NDArray[np.int64]]:
        """N arrays on the host, as `samfast.masks.rle.encode` gives them; waits for the GPU."""
        if not len(self):
            return []
        return np.split(self.lengths.cpu().numpy(), self.ends[:-1].cpu().numpy())


def join(arrays: list[NDArray[np.int64]], size: Size) -> Runs:
    """The opposite of `Runs.split`: the runs of masks of that size, on the host."""
    ends = np.cumsum([len(own) for own in arrays], dtype=np.int64)
    lengths = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
    return Runs(torch.from_numpy(lengths), torch.from_numpy(ends), size)


def of_masks(masks: Tensor) -> Runs:
    """The runs of masks (N, H, W) bool; waits for the GPU once, to learn how many there are."""
    count, height, width = masks.shape
    flat = masks.mT.reshape(count, height * width)
    changes = F.pad(flat, (1, 0))[:, :-1] ^ flat
    places = changes.flatten().nonzero()[:, 0]
    return _between(places % (height * width), places // (height * width), count, (height, width))


def of_packed(packed: Tensor, height: int, crop: Box | None = None, size: Size | None = None) -> Runs:
    """The runs of packed masks, or of the images that they are a crop of, false outside of it.

    packed     (N, w, ceil(h / 32)) int32, see `samfast.masks.packed`
    height     h, the masks' rows
    crop,size  where the masks lie in images of that size (height, width), XYXY; None: they are the whole
    Waits for the GPU twice, to learn how many words have a change, and how many changes these have.
    """
    count = len(packed)
    if crop is None or size is None:
        crop, size = (0, 0, packed.shape[1], height), (height, packed.shape[1])
    x0, y0, x1 = crop[:3]
    rows = height
    if height == size[0]:
        if x1 < size[1]:
            packed = F.pad(packed, (0, 0, 0, 1))  # the column after the crop ends what reaches its foot
    else:
        rows += 1  # and here the row below each column does
        if height % BITS == 0:
            packed = F.pad(packed, (0, 1))
    columns, words = packed.shape[1:]
    changes = _changes(packed, height, wraps=height == size[0])
    if rows % BITS:
        changes[:, :, -1] &= (1 << (rows % BITS)) - 1
    changes = changes.flatten()
    changed = changes.nonzero()[:, 0]
    column = changed // words % columns
    first = (x0 + column) * size[0] + y0 + changed % words * BITS
    bit = bits(packed.device)
    flags = ((changes[changed][:, None] >> bit) & 1).to(torch.bool)
    flags &= first[:, None] + bit < size[0] * size[1]  # a crop's foot may be the image's last pixel
    chosen = flags.flatten().nonzero()[:, 0]
    places, owners = chosen // BITS, changed // (words * columns)
    return _between(first[places] + chosen % BITS, owners[places], count, size)


def _changes(packed: Tensor, height: int, wraps: bool) -> Tensor:
    """Of each bit whether it differs from the one above it (N, w, words); rows below the masks are of no use.

    wraps  above a column's head is the foot of the column before; otherwise a zero
    """
    carry = F.pad((packed >> (BITS - 1)) & 1, (1, 0))[:, :, :-1]
    if wraps:
        foot = (packed[:, :-1, -1] >> ((height - 1) % BITS)) & 1
        carry[:, 1:, 0] = foot
    return packed ^ ((packed << 1) | carry)


def _between(changes: Tensor, owners: Tensor, count: int, size: Size) -> Runs:
    """Runs between the places (T,) where the pixels of masks change, in order; owners (T,) says of which mask."""
    number = torch.ones(count, dtype=torch.int64, device=changes.device)
    number.index_add_(0, owners, torch.ones_like(owners))
    ends = number.cumsum(0)
    edges = changes.new_empty(len(changes) + count)  # where each run ends
    edges[torch.arange(len(changes), device=changes.device) + owners] = changes
    edges[ends - 1] = size[0] * size[1]
    starts = F.pad(edges, (1, 0))[:-1]
    starts[ends - number] = 0
    return Runs(edges - starts, ends, size)
