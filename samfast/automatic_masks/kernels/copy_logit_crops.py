"""Crops of many low-resolution logits, cut out and put back."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _table_row(table):
    """The row of a crop's table: its logits, its begin in the values, its place XYXY."""
    return (
        tl.load(table),
        tl.load(table + 1),
        tl.load(table + 2),
        tl.load(table + 3),
        tl.load(table + 4),
        tl.load(table + 5),
    )


@triton.jit
def _cut_out(low_res, table, values, height, width, BLOCK: tl.constexpr):
    """Some pixels of one crop."""
    index, begin, x0, y0, x1, y1 = _table_row(table + tl.program_id(0) * 6)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < (x1 - x0) * (y1 - y0)
    y, x = y0 + pixel // (x1 - x0), x0 + pixel % (x1 - x0)
    value = tl.load(low_res + (index * height + y) * width + x, mask=inside)
    tl.store(values + begin + pixel, value, mask=inside)


@triton.jit
def _put_back(values, table, low_res, height, width, LOW: tl.constexpr, BLOCK: tl.constexpr):
    """Some pixels of one crop's whole logits."""
    index, begin, x0, y0, x1, y1 = _table_row(table + tl.program_id(0) * 6)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = pixel // width, pixel % width
    inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    value = tl.load(values + begin + (y - y0) * (x1 - x0) + (x - x0), mask=inside, other=LOW)
    tl.store(low_res + index * height * width + pixel, value, mask=pixel < height * width)


def cut(low_res: Tensor, table: Tensor, total: int, largest: int) -> Tensor:
    """(total,) values of the crops of low_res (n, h, w).

    table    (N, 6) int64: index of the crop's logits, its begin in the values, its place XYXY
    largest  values of the largest crop
    """
    low_res = low_res.contiguous()
    values = low_res.new_empty(total)
    grid = (len(table), triton.cdiv(largest, BLOCK))
    _cut_out[grid](low_res, table, values, *low_res.shape[1:], BLOCK=BLOCK, num_warps=4)
    return values


def restore(values: Tensor, table: Tensor, size: tuple[int, int], low: float) -> Tensor:
    """(N, h, w) logits of that size, `low` outside each crop.

    table  as for `cut`; its first column is 0 to N - 1
    """
    low_res = values.new_empty(len(table), *size)
    grid = (len(table), triton.cdiv(size[0] * size[1], BLOCK))
    _put_back[grid](values, table, low_res, *size, LOW=low, BLOCK=BLOCK, num_warps=4)
    return low_res
