"""Runs to COCO's text: first each run's number and its count of characters, then these."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Runs of a program."""

PLACE_BYTES = 8
"""Of the place in the text at which a mask's ends."""


@triton.jit
def _length(ends, run, real):
    """The length of a run: a mask's first one begins where the mask before ends."""
    begin = tl.load(ends + run - 1, mask=real & (run > 0), other=0)
    return tl.load(ends + run, mask=real, other=0) - begin


@triton.jit(do_not_specialize=["count"])
def _numbers(
    ends, owners, numbers, characters, count, MAX_GROUPS: tl.constexpr, BLOCK: tl.constexpr
):
    """The number of a run: from the fourth of a mask on, its difference to the last but one."""
    run = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = run < count
    owner = tl.load(owners + run, mask=real, other=0)
    differs = real & (run > 2)
    differs = differs & (tl.load(owners + run - 3, mask=differs, other=-1) == owner)
    number = _length(ends, run, real) - _length(ends, run - 2, differs)
    taken = tl.full((BLOCK,), 1, tl.int64)
    for group in tl.static_range(1, MAX_GROUPS):
        # The range of so many groups of five bits, the sign among them.
        within = (number >= -(1 << (5 * group - 1))) & (number < (1 << (5 * group - 1)))
        taken += 1 - within.to(tl.int64)
    tl.store(numbers + run, number, mask=real)
    tl.store(characters + run, taken, mask=real)


@triton.jit(do_not_specialize=["count"])
def _write(
    owners,
    numbers,
    stops,
    text,
    places,
    count,
    MAX_GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A run's characters, five bits each, lowest first; the sixth says that more follow. Behind its
    last run, the place at which a mask's text ends.
    """
    run = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = run < count
    number = tl.load(numbers + run, mask=real, other=0)
    stop = tl.load(stops + run, mask=real, other=0)
    place = tl.load(stops + run - 1, mask=real & (run > 0), other=0)
    taken = stop - place
    for group in tl.static_range(MAX_GROUPS):
        character = 48 + (number & 31) + 32 * (taken > group + 1).to(tl.int64)
        tl.store(text + place + group, character.to(tl.uint8), mask=taken > group)
        number = number >> 5
    owner = tl.load(owners + run, mask=real, other=0)
    after = tl.load(owners + run + 1, mask=run + 1 < count, other=-1)
    tl.store(places + owner, stop, mask=real & (after != owner))


def write(ends: Tensor, owners: Tensor, masks: int, max_groups: int) -> Tensor:
    """(masks * PLACE_BYTES + R * max_groups,) uint8, one tensor for one copy: as int64 the place at
    which each mask's text ends, then the texts, one after another, and room that is left.

    ends, owners  of R runs of so many masks (`samfast.masks.mask_runs.Runs`), contiguous
    max_groups    most characters that a number can need
    """
    count, device = len(ends), ends.device
    numbers, characters = torch.empty((2, count), dtype=torch.int64, device=device).unbind()
    room = masks * PLACE_BYTES
    out = torch.empty(room + count * max_groups, dtype=torch.uint8, device=device)
    grid = (triton.cdiv(count, BLOCK),)
    constants = {"MAX_GROUPS": max_groups, "BLOCK": BLOCK}
    _numbers[grid](ends, owners, numbers, characters, count, **constants)
    places, text = out[:room].view(torch.int64), out[room:]
    _write[grid](owners, numbers, characters.cumsum(0), text, places, count, **constants)
    return out
