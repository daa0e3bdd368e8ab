"""One pass over rows: add, normalise or GELU, and quantize, while the row is in registers.

A row is held as two blocks, each a power of two wide: SAM's widths are such sums (768 = 512 + 256),
and with one block of the next power of two a third of the threads would be idle.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.device.kernels.gelu import gelu
from samfast.encoding.fused_operations import RowPass, Rows
from samfast.linear.quantization import LARGEST, SMALLEST_SCALE


@triton.jit
def _read(tensors, row, y_row, column, inside, WIDTH: tl.constexpr, STEPS: tl.constexpr):
    """x + y + shift of one block, stored if there is a y, then through GELU; as STEPS says."""
    x, y, shift, new_x = tensors
    ADD: tl.constexpr = STEPS[0]
    SHIFT: tl.constexpr = STEPS[1]
    GELU: tl.constexpr = STEPS[2]
    EXACT: tl.constexpr = STEPS[3]
    here = row[:, None] * WIDTH + column[None, :]
    value = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(y + y_row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
        value += added.to(tl.float32)
    if SHIFT:
        value += tl.load(shift + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    if ADD:
        kept = value.to(new_x.dtype.element_ty)
        tl.store(new_x + here, kept, mask=inside)
        value = kept.to(tl.float32)
    if GELU:
        value = gelu(value, EXACT)
    return tl.where(inside, value, 0.0)


@triton.jit
def _scaled(value, weight, bias, column, WIDTH: tl.constexpr):
    value *= tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    return value + tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _write(
    out,
    value,
    scale,
    row,
    column,
    inside,
    WIDTH: tl.constexpr,
    QUANTIZE: tl.constexpr,
    ROUND: tl.constexpr,
):
    if ROUND:
        # 1.5 * 2**23: to the nearest whole number, ties to even.
        value = (value / scale[:, None] + 12582912.0) - 12582912.0
    elif QUANTIZE:
        # One division for a row: float8 has three bits, which the last of float32 seldom moves.
        value *= (1.0 / scale)[:, None]
    here = out + row[:, None] * WIDTH + column[None, :]
    tl.store(here, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rows(
    x,
    y,
    shift,
    weight,
    bias,
    new_x,
    out,
    scales,
    rows,
    y_rows,  # after which y repeats
    eps,
    largest,  # of the quantized format
    smallest,
    WIDTH: tl.constexpr,
    BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr,  # 0: none
    ROWS: tl.constexpr,
    ADD: tl.constexpr,  # whether there is a y
    SHIFT: tl.constexpr,
    NORM: tl.constexpr,
    GELU: tl.constexpr,
    EXACT: tl.constexpr,
    QUANTIZE: tl.constexpr,
    ROUND: tl.constexpr,  # to whole numbers
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    real = (row < rows)[:, None]
    y_row = row % y_rows
    column = tl.arange(0, BLOCK_1)
    inside = real & (column < WIDTH)[None, :]
    tensors = (x, y, shift, new_x)
    STEPS: tl.constexpr = (ADD, SHIFT, GELU, EXACT)
    value = _read(tensors, row, y_row, column, inside, WIDTH, STEPS)
    if BLOCK_2:
        column_2 = BLOCK_1 + tl.arange(0, BLOCK_2)
        inside_2 = real & (column_2 < WIDTH)[None, :]
        value_2 = _read(tensors, row, y_row, column_2, inside_2, WIDTH, STEPS)
    if NORM:
        total = tl.sum(value, 1)
        if BLOCK_2:
            total += tl.sum(value_2, 1)
        mean = (total / WIDTH)[:, None]
        value = tl.where(inside, value - mean, 0.0)
        squares = tl.sum(value * value, 1)
        if BLOCK_2:
            value_2 = tl.where(inside_2, value_2 - mean, 0.0)
            squares += tl.sum(value_2 * value_2, 1)
        share = (1.0 / tl.sqrt(squares / WIDTH + eps))[:, None]
        value = _scaled(value * share, weight, bias, column, WIDTH)
        if BLOCK_2:
            value_2 = _scaled(value_2 * share, weight, bias, column_2, WIDTH)
    scale = tl.full((ROWS,), 1.0, tl.float32)
    if QUANTIZE:
        highest = tl.max(tl.abs(value), 1)
        if BLOCK_2:
            highest = tl.maximum(highest, tl.max(tl.abs(value_2), 1))
        scale = tl.maximum(highest / largest, smallest)
        tl.store(scales + row, scale, mask=row < rows)
    _write(out, value, scale, row, column, inside, WIDTH, QUANTIZE, ROUND)
    if BLOCK_2:
        _write(out, value_2, scale, row, column_2, inside_2, WIDTH, QUANTIZE, ROUND)


def launch(x: Tensor, step: RowPass, *, warps: int | None = None) -> Rows:
    """As `samfast.encoding.fused_operations.run_plainly`.

    x      (M, C), contiguous
    warps  of a program; None: as measured to be best
    """
    y, shift, norm, quantize, shape = step.y, step.shift, step.norm, step.quantize, x.shape
    elementwise = y is None and shift is None and norm is None and quantize is None
    if step.gelu and elementwise and x.numel() % 2048 == 0:
        x = x.view(-1, 2048)  # rows of a convenient width
    rows, width = x.shape
    out = step.out
    out = torch.empty_like(x, dtype=quantize or x.dtype) if out is None else out.view(x.shape)
    scales = x.new_empty(rows if quantize else 0, dtype=torch.float32)
    new_x = torch.empty_like(x) if y is not None else x
    block_1, block_2 = _blocks(width)
    per_program = triton.next_power_of_2(max(1, 512 // width))
    weight, bias, eps = norm if norm is not None else (x, x, 0.0)
    _rows[(triton.cdiv(rows, per_program),)](
        x,
        x if y is None else y,
        x if shift is None else shift,
        weight,
        bias,
        new_x,
        out,
        scales,
        rows,
        1 if y is None else y.shape[0],
        eps,
        LARGEST[quantize] if quantize else 0.0,
        SMALLEST_SCALE,
        WIDTH=width,
        BLOCK_1=block_1,
        BLOCK_2=block_2,
        ROWS=per_program,
        ADD=y is not None,
        SHIFT=shift is not None,
        NORM=norm is not None,
        GELU=step.gelu,
        EXACT=x.dtype == torch.float32,
        QUANTIZE=quantize is not None,
        ROUND=quantize == torch.int8,
        num_warps=warps or (1 if width <= 1280 else 2),
    )
    return new_x.view(shape), out.view(shape), scales


def _blocks(width: int) -> tuple[int, int]:
    """Two powers of two that together are at least `width`; the second 0 if one will do."""
    first = triton.next_power_of_2(width)
    if first == width or width < 32:
        return first, 0
    first //= 2
    return first, triton.next_power_of_2(width - first)
