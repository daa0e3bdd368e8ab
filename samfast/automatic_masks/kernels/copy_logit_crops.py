"""Crops of many low-resolution logits, cut out and put back."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _place(table):
    """XYXY of a crop."""
    return tl.load(table), tl.load(table + 1), tl.load(table + 2), tl.load(table + 3)


@triton.jit
def _cut_out(low_res, table, values, height, width, BLOCK: tl.constexpr):
    """Some pixels of one crop."""
    row = table + tl.program_id(0) * 6
    index, begin = tl.load(row), tl.load(row + 1)
    x0, y0, x1, y1 = _place(row + 2)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < (x1 - x0) * (y1 - y0)
    y, x = y0 + pixel // (x1 - x0), x0 + pixel % (x1 - x0)
    value = tl.load(low_res + (index * height + y) * width + x, mask=inside)
    tl.store(values + begin + pixel, value, mask=inside)


@triton.jit
def _put_back(table, low_res, height, width, LOW: tl.constexpr, BLOCK: tl.constexpr):
    """Some pixels of one crop's whole logits."""
    crop = tl.program_id(0).to(tl.int64)
    row = table + crop * 5
    values = tl.load(row).to(tl.pointer_type(low_res.dtype.element_ty))
    x0, y0, x1, y1 = _place(row + 1)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = pixel // width, pixel % width
    inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    value = tl.load(values + (y - y0) * (x1 - x0) + (x - x0), mask=inside, other=LOW)
    tl.store(low_res + crop * height * width + pixel, value, mask=pixel < height * width)


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


def restore(table: Tensor, size: tuple[int, int], dtype: torch.dtype, low: float) -> Tensor:
    """(N, h, w) logits of that size and dtype, `low` outside each crop.

    table  (N, 5) int64: the address of a crop's first value, its place XYXY
    """
    low_res = torch.empty((len(table), *size), dtype=dtype, device=table.device)
    grid = (len(table), triton.cdiv(size[0] * size[1], BLOCK))
    _put_back[grid](table, low_res, *size, LOW=low, BLOCK=BLOCK, num_warps=4)
    return low_res
