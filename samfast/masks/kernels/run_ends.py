"""Runs of packed masks: where they end, which is where pixels change.

Words are read in blocks. The first pass counts the changes of each block; their cumulative sums are
the places at which the second pass writes each block's changes, independently of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.masks.bit_masks import BITS

if TYPE_CHECKING:
    from samfast.masks.mask_runs import PackedMasks

BLOCK = 1024
"""Words of a program."""

_UNSPECIALIZED = ["columns", "words", "down", "total", "last", "corner", "foot"]


@triton.jit
def _changes(packed, word, columns, words, down, total, last, corner, foot, WRAPS: tl.constexpr):
    """Whether each bit of the words differs from the one above it (`mask_runs.changed_bits`)."""
    column, row = word // down, word % down
    inside = (word < total) & (column < columns)
    bits = tl.load(packed + column * words + row, mask=inside & (row < words), other=0)
    above = tl.load(packed + column * words + row - 1, mask=inside & (row > 0), other=0)
    carry = (above >> 31) & 1
    if WRAPS:
        before = tl.load(
            packed + column * words - 1, mask=(word < total) & (row == 0) & (column > 0), other=0
        )
        carry = tl.where(row == 0, (before >> foot) & 1, carry)
    change = bits ^ ((bits << 1) | carry)
    change = tl.where(row == down - 1, change & last, change)
    return tl.where(word == total - 1, change & corner, change)


@triton.jit
def _ones(words):
    """Set bits of each word."""
    pairs = words - ((words >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    return (((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _count(
    packed,
    counts,
    columns,
    words,
    down,
    total,
    last,
    corner,
    foot,
    WRAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The changes of a block of a mask, and its words that have any."""
    block, mask = tl.program_id(0), tl.program_id(1)
    word = block * BLOCK + tl.arange(0, BLOCK)
    mask_words = packed + mask.to(tl.int64) * columns * words
    change = _changes(mask_words, word, columns, words, down, total, last, corner, foot, WRAPS)
    place = counts + mask * tl.num_programs(0) + block
    tl.store(place, tl.sum(_ones(change), axis=0))
    tl.store(
        place + tl.num_programs(1) * tl.num_programs(0), tl.sum((change != 0).to(tl.int32), axis=0)
    )


@triton.jit(
    do_not_specialize=[
        *_UNSPECIALIZED,
        *("left", "top", "height", "pixels"),
        *("first_run", "first_pixel", "first_mask"),
    ]
)
def _ends(
    packed,
    counted,
    ends,
    owners,
    columns,
    words,
    down,
    total,
    last,
    corner,
    foot,
    left,
    top,
    height,
    pixels,
    first_run,
    first_pixel,
    first_mask,
    WRAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ends of the runs of a block of a mask: its changes, and the end of the image."""
    block, mask = tl.program_id(0), tl.program_id(1)
    word = block * BLOCK + tl.arange(0, BLOCK)
    mask_words = packed + mask.to(tl.int64) * columns * words
    change = _changes(mask_words, word, columns, words, down, total, last, corner, foot, WRAPS)
    ones = _ones(change)
    # Each mask before has one end more than changes.
    behind = tl.load(counted + mask * tl.num_programs(0) + block) + mask + first_run
    place = behind - tl.sum(ones, axis=0) + tl.cumsum(ones, axis=0) - ones
    before = mask.to(tl.int64) * pixels + first_pixel
    owner = mask + first_mask
    pixel = before + (left + word // down).to(tl.int64) * height + top + word % down * 32
    for bit in tl.static_range(32):
        is_set = (change >> bit) & 1
        tl.store(ends + place, pixel + bit, mask=is_set != 0)
        tl.store(owners + place, owner, mask=is_set != 0)
        place += is_set
    if block == tl.num_programs(0) - 1:
        tl.store(ends + behind, before + pixels)
        tl.store(owners + behind, owner)


def count(masks: PackedMasks) -> Tensor:
    """(2, N, blocks) int64: changes, and changed words."""
    layout = masks.layout
    blocks = max(1, triton.cdiv(layout.across * layout.down, BLOCK))
    counts = torch.empty((2, len(masks), blocks), dtype=torch.int64, device=masks.words.device)
    if len(masks):
        _count[blocks, len(masks)](
            masks.words, counts, *_words(masks), WRAPS=layout.wraps, BLOCK=BLOCK
        )
    return counts


def write_ends(
    masks: PackedMasks, counts: Tensor, ends: Tensor, owners: Tensor, first: tuple[int, int, int]
) -> None:
    """Write the ends and the owners of the runs of N masks (`samfast.masks.mask_runs.Runs`).

    counts  (N, blocks): their changes
    first   the run, the pixel and the mask with which they begin among those of all groups
    """
    if not len(masks):
        return
    layout = masks.layout
    _ends[counts.shape[::-1]](
        masks.words,
        counts.flatten().cumsum(0),
        ends,
        owners,
        *_words(masks),
        layout.left,
        layout.top,
        layout.size[0],
        masks.pixels,
        *first,
        WRAPS=layout.wraps,
        BLOCK=BLOCK,
    )


def _words(masks: PackedMasks) -> tuple[int, ...]:
    """The kernels' arguments from `columns` to `foot`."""
    layout = masks.layout
    foot, total = (layout.height - 1) % BITS, layout.across * layout.down
    return (*masks.words.shape[1:], layout.down, total, layout.last, layout.corner, foot)
