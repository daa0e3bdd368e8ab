"""Runs to COCO's text: what each run's number is and how many characters it takes, and then the
characters.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Runs of a program."""


@triton.jit(do_not_specialize=["count", "masks", "steps"])
def _numbers(
    lengths, ends, numbers, characters, count, masks, steps, MOST: tl.constexpr, BLOCK: tl.constexpr
):
    """The number that a run is written as: from the fourth of a mask on, the difference to the
    second before it.
    """
    run = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = run < count
    first = tl.zeros((BLOCK,), tl.int32)  # whose mask it is: the first that ends behind it
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
    for group in tl.static_range(1, MOST):
        # What five bits a group can hold, the sign among them.
        within = (number >= -(1 << (5 * group - 1))) & (number < (1 << (5 * group - 1)))
        taken += 1 - within.to(tl.int32)
    tl.store(numbers + run, number, mask=real)
    tl.store(characters + run, taken, mask=real)


@triton.jit(do_not_specialize=["count"])
def _write(numbers, characters, stops, text, count, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """A run's characters, five bits each, lowest first; the sixth says that more follow."""
    run = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = run < count
    number = tl.load(numbers + run, mask=real, other=0)
    taken = tl.load(characters + run, mask=real, other=0)
    place = tl.load(stops + run, mask=real, other=0) - taken
    for group in tl.static_range(MOST):
        character = 48 + (number & 31) + 32 * (taken > group + 1).to(tl.int64)
        tl.store(text + place + group, character.to(tl.uint8), mask=taken > group)
        number = number >> 5


def write(lengths: Tensor, ends: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The text of masks, one after another, in room for the longest; and (N,) where each mask's
    ends.

    lengths  (R,) int64, their runs, contiguous;  ends (N,) int64, where each mask's end
    most     characters that a number can need
    """
    count, device = len(lengths), lengths.device
    numbers = torch.empty_like(lengths)
    characters = torch.empty(count, dtype=torch.int32, device=device)
    text = torch.empty(count * most, dtype=torch.uint8, device=device)
    grid = (triton.cdiv(count, BLOCK),)
    steps = len(ends).bit_length()
    _numbers[grid](
        lengths, ends, numbers, characters, count, len(ends), steps, MOST=most, BLOCK=BLOCK
    )
    stops = characters.cumsum(0)
    _write[grid](numbers, characters, stops, text, count, MOST=most, BLOCK=BLOCK)
    return text, stops[ends - 1]
