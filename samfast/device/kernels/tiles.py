"""Blocks of rows of a contiguous matrix."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_part(matrix, row, inside, channel, C: tl.constexpr, EVEN: tl.constexpr):
    """(len(row), len(channel)): those channels of rows of C, zeros where `inside` is false.

    EVEN: every row is inside.
    """
    places = matrix + row[:, None] * C + channel[None, :]
    return tl.load(places) if EVEN else tl.load(places, mask=inside[:, None], other=0.0)


@triton.jit
def load_rows(matrix, row, inside, C: tl.constexpr, EVEN: tl.constexpr):
    """(len(row), C): whole rows, as `load_part`."""
    return load_part(matrix, row, inside, tl.arange(0, C), C, EVEN)


@triton.jit
def load_vector(vector, column, inside):
    """(1, len(column)) float32, for all rows; zeros where `inside`, if given, is false."""
    places = vector + column
    value = tl.load(places) if inside is None else tl.load(places, mask=inside, other=0.0)
    return value.to(tl.float32)[None, :]
