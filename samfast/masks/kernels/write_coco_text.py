"""Runs to COCO's text: first each run's number and its count of characters, then these."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Runs of a program."""


@triton.jit(do_not_specialize=["count", "masks", "steps"])
def _numbers(
    lengths,
    ends,
    numbers,
    characters,
    count,
    masks,
    steps,
    MAX_GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The number of a run: from the fourth of a mask on, its difference to the last but one."""
    run = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = run < count
    first = tl.zeros((BLOCK,), tl.int32)  # the run's mask: the first that ends behind it
    beyond = tl.zeros((BLOCK,), tl.int32) + masks
    for _ in range(steps):
        middle = (first + beyond) // 2
        searching = first < beyond
        before = searching & (tl.load(ends + middle, mask=real & searching, other=0) <= run)
        beyond = tl.where(searching & (before == 0), middle, beyond)
        first = tl.where(before, middle + 1, first)
    start = tl.load(ends + first - 1, mask=real & (first > 0), other=0)
    number = tl.load(lengths + run, mask=real, other=0)
    number -= tl.load(lengths + run - 2, mask=real & (run - start > 2), other=0)
    taken = tl.full((BLOCK,), 1, tl.int32)
    for group in tl.static_range(1, MAX_GROUPS):
        # The range of so many groups of five bits, the sign among them.
        within = (number >= -(1 << (5 * group - 1))) & (number < (1 << (5 * group - 1)))
        taken += 1 - within.to(tl.int32)
    tl.store(numbers + run, number, mask=real)
    tl.store(characters + run, taken, mask=real)


@triton.jit(do_not_specialize=["count"])
def _write(numbers, characters, stops, text, count, MAX_GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """A run's characters, five bits each, lowest first; the sixth says that more follow."""
    run = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = run < count
    number = tl.load(numbers + run, mask=real, other=0)
    taken = tl.load(characters + run, mask=real, other=0)
    place = tl.load(stops + run, mask=real, other=0) - taken
    for group in tl.static_range(MAX_GROUPS):
        character = 48 + (number & 31) + 32 * (taken > group + 1).to(tl.int64)
        tl.store(text + place + group, character.to(tl.uint8), mask=taken > group)
        number = number >> 5


def write(lengths: Tensor, ends: Tensor, max_groups: int) -> tuple[Tensor, Tensor]:
    """The text of masks, one after another, and the end of each mask's (N,).

    lengths     (R,) int64, their runs, contiguous;  ends (N,) int64, the end of each mask's
    max_groups  most characters that a number can need; the text is padded to so many a run
    """
    count, device = len(lengths), lengths.device
    numbers = torch.empty_like(lengths)
    characters = torch.empty(count, dtype=torch.int32, device=device)
    text = torch.empty(count * max_groups, dtype=torch.uint8, device=device)
    grid = (triton.cdiv(count, BLOCK),)
    steps = len(ends).bit_length()
    constants = {"MAX_GROUPS": max_groups, "BLOCK": BLOCK}
    _numbers[grid](lengths, ends, numbers, characters, count, len(ends), steps, **constants)
    stops = characters.cumsum(0)
    _write[grid](numbers, characters, stops, text, count, **constants)
    return text, stops[ends - 1]
