"""Blocks of rows of a contiguous matrix."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(matrix, row, inside, C: tl.constexpr, EVEN: tl.constexpr):
    """(len(row), C): those rows, zeros where not `inside`; EVEN if all are."""
    places = matrix + row[:, None] * C + tl.arange(0, C)[None, :]
    if EVEN:
        tile = tl.load(places)
    else:
        tile = tl.load(places, mask=inside[:, None], other=0.0)
    return tile


@triton.jit
def load_vector(vector, column, inside):
    """(1, len(column)) float32: a number a column, for all rows; zeros where not `inside`, None: all are."""
    if inside is None:
        value = tl.load(vector + column)
    else:
        value = tl.load(vector + column, mask=inside, other=0.0)
    return value.to(tl.float32)[None, :]
