"""Kernels of one line each, for tests of how kernels are compiled."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def double(x, SIZE: tl.constexpr):
    places = x + tl.arange(0, SIZE)
    tl.store(places, 2 * tl.load(places))


@triton.jit
def triple(x, SIZE: tl.constexpr):
    places = x + tl.arange(0, SIZE)
    tl.store(places, 3 * tl.load(places))


@triton.jit
def broken(x, SIZE: tl.constexpr):
    tl.store(x + tl.arange(0, SIZE + 1), 0.0)  # not a power of two
