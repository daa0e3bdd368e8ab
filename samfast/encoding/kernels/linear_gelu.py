"""A linear layer with GELU in the product's epilogue, on GPUs with a copy engine (Hopper).

As many programs as there are multiprocessors take tile after tile. The loops over tiles and over a
tile's depth are one, so that operands of the next tile arrive while GELU of the last is computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from samfast.device import cuda_programs
from samfast.device.kernels.gelu import gelu
from samfast.encoding.kernels import hopper_linear_gelu
from samfast.linear.quantization import LARGEST

ROWS, COLUMNS = 128, 256
"""The tile of a program: eight warps, of which each keeps 64 x 64 sums in registers."""

DEPTH_BYTES = 128
"""What is read of a row and of a column at a time."""

GROUP = 8
"""Tiles below each other that are computed together, so that they share what the cache holds."""

HOPPER = (9, 0)


@triton.jit
def _finish(acc, part, row, column, out, scales, HALF: tl.constexpr, QUANTIZED: tl.constexpr):
    """Half of a tile's columns: scales, bias, GELU, the format of `out`; stored."""
    row_scale, column_scale, bias, scale, largest = scales
    column += part * HALF
    columns = column + tl.arange(0, HALF)
    if QUANTIZED:
        acc = acc * row_scale[:, None] * tl.load(column_scale + columns)[None, :]
    acc += tl.load(bias + columns).to(tl.float32)[None, :]
    value = gelu(acc, False)
    if QUANTIZED:
        value *= scale
        # A cast would make it the largest, silently; NaN is found where the embeddings are used.
        value = tl.where(tl.abs(value) > largest, float("nan"), value)
    out.store([row, column], value.to(out.dtype))


@triton.jit
def _linear_gelu(
    x,  # as a tensor descriptor of (ROWS, DEPTH) tiles
    weight,  # of (COLUMNS, DEPTH) tiles
    bias,
    out,  # of (ROWS, COLUMNS / 2) tiles
    x_scale,  # of rows of x, and of rows of the weight, if QUANTIZED
    weight_scale,
    bound,  # of the result's magnitude: one number
    out_scale,  # written: the scale of every row of the result
    rows,
    width,
    down,  # tiles
    across,
    largest,  # of the quantized format
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    HALF: tl.constexpr = COLUMNS // 2
    scale = 1.0
    if QUANTIZED:
        scale = largest / tl.load(bound)
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        group, place = tile // (GROUP * across), tile % (GROUP * across)
        height = tl.minimum(down - group * GROUP, GROUP)
        row = (group * GROUP + place % height) * ROWS
        column = place // height * COLUMNS
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, width, DEPTH):
            acc = tl.dot(x.load([row, start]), weight.load([column, start]).T, acc)
        row_scale = 1.0
        if QUANTIZED:
            places = row + tl.arange(0, ROWS)
            row_scale = tl.load(x_scale + places, mask=places < rows, other=0.0)
            if column == 0:
                tl.store(out_scale + places, 1.0 / scale, mask=places < rows)
        scales = (row_scale, weight_scale, bias, scale, largest)
        # By halves, so that the values on their way out take half the shared memory.
        left, right = acc.reshape(ROWS, 2, HALF).permute(0, 2, 1).split()
        _finish(left, 0, row, column, out, scales, HALF, QUANTIZED)
        _finish(right, 1, row, column, out, scales, HALF, QUANTIZED)


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `launch` or `launch_quantized` takes these operands, on this GPU."""
    return (
        x.dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
        and weight.is_contiguous()
        and torch.cuda.get_device_capability(x.device) >= HOPPER
        and weight.shape[0] % COLUMNS == 0
        # Rows of a tensor descriptor are whole 16 bytes.
        and weight.shape[1] * weight.element_size() % 16 == 0
    )


def launch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(x W^T + b).

    x       (M, K) float16 or bfloat16, contiguous
    weight  (N, K) likewise
    bias    (N,)
    returns (M, N) of x's dtype
    """
    out = x.new_empty(len(x), len(weight))
    _launch(x, weight, bias, out, None)
    return out


def launch_quantized(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, bound: Tensor
) -> tuple[Tensor, Tensor]:
    """The same of float8 rows and weights, to float8: q and scale as `quantize_rows` gives them.

    x_scale, weight_scale  (M,), (N,) float32
    bound                  () float32, above every magnitude of the result; it becomes the largest
                           float8, and what is larger becomes NaN
    """
    out = torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)
    out_scale = torch.empty_like(x_scale)
    _launch(x, weight, bias, out, (x_scale, weight_scale, bound, out_scale))
    return out, out_scale


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    scales: tuple[Tensor, Tensor, Tensor, Tensor] | None,
) -> None:
    if hopper_linear_gelu.takes(x, weight, bias):
        hopper_linear_gelu.launch(x, weight, bias, out, scales)
        return
    (rows, width), columns = x.shape, weight.shape[0]
    down, across = triton.cdiv(rows, ROWS), columns // COLUMNS
    depth = DEPTH_BYTES // x.element_size()
    programs = min(down * across, _multiprocessors(x.device))
    _linear_gelu[(programs,)](
        TensorDescriptor.from_tensor(x, [ROWS, depth]),
        TensorDescriptor.from_tensor(weight, [COLUMNS, depth]),
        bias,
        TensorDescriptor.from_tensor(out, [ROWS, COLUMNS // 2]),
        *(scales or (bias,) * 4),
        rows,
        width,
        down,
        across,
        LARGEST.get(x.dtype, 1.0),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=depth,
        GROUP=GROUP,
        QUANTIZED=scales is not None,
        num_warps=8,
        num_stages=3,
    )


def _multiprocessors(device: torch.device) -> int:
    """How many programs run side by side; 2 in the interpreter, so that tests see a second tile."""
    if device.type != "cuda":
        return 2
    return cuda_programs.multiprocessors(device)
