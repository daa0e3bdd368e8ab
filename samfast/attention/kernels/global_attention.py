"""Global attention: every token of an image with every other, relative positions added on the fly.

A block of keys lies in one row of the grid. So the rows' term is one number per query and block
(`rel_h`), and the columns' term (`rel_w`) is one tile, read once for all rows.

A softmax may subtract any number from a query's scores. The usual one is the maximum so far, which
costs a third of the instructions of a step. In bfloat16 and float32 this kernel subtracts the
highest score among the keys of the query's own row, which is found once. Should others exceed it by
so much that their weights overflow, the sum of the weights says so, and the block is computed again
with the maximum so far. float16 would overflow often, hence takes the latter at once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.attention.kernels import hopper_global, positions
from samfast.attention.kernels.tunables import Config, split_dim
from samfast.device.kernels.arithmetic import LOG2_E, dot_precision

MAX_TERM_BYTES = 1 << 27
"""Position terms that are kept at a time; 8 images of ViT-B need 96 MiB."""

AGAIN = Config(hopper_global.SIDE, 64, 4, 3, tma=True)
"""Of this kernel after `hopper_global`, whose marks are for as many queries."""

MAX_TOTAL = 2.0**100
"""A sum of weights below which none has overflowed, nor its product with a value below 2**27."""


@triton.jit
def _keys(tile, base, key, column, dims, block, KIND: tl.constexpr):
    """Rows `key`, ... of one image's k or v, the columns of `dims`: (BLOCK_N, len(dims)).

    block  the image's first row, whether each key is inside the grid, and elements per row
    KIND   DIM, EVEN and TMA of the kernel
    """
    image_row, inside, stride = block
    DIM: tl.constexpr = KIND[0]
    EVEN: tl.constexpr = KIND[1]
    TMA: tl.constexpr = KIND[2]
    if TMA:
        return tile.load([image_row + key, column])
    rows = key + tl.arange(0, inside.shape[0])
    places = base + rows[:, None] * stride + dims[None, :]
    if EVEN:
        return tl.load(places)
    return tl.load(places, mask=inside[:, None] & (dims[None, :] < DIM), other=0.0)


@triton.jit
def _columns_term(rel_w, query, width, first, real, inside):
    """The columns' term of some queries for the keys of columns `first`, ...: float32."""
    column = first + tl.arange(0, inside.shape[0])
    return tl.load(
        rel_w + query[:, None] * width + column[None, :],
        mask=real[:, None] & inside[None, :],
        other=0.0,
    ).to(tl.float32)


@triton.jit
def _global_attention(
    qkv,
    tile_1,  # qkv as a tensor descriptor of (BLOCK_N, DIM_1) tiles, if TMA
    tile_2,
    rel_h,
    rel_w,
    out,
    overflowed,  # (items, blocks of queries) int8: whether a block is to be computed again
    num_heads,
    height,
    width,
    channels,
    scale,  # of the scores, times log2(e)
    max_total,
    DIM: tl.constexpr,
    DIM_1: tl.constexpr,
    DIM_2: tl.constexpr,  # the rest of a head whose width is not a power of two, or 0
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    POSITIONS: tl.constexpr,
    EVEN: tl.constexpr,  # the grid is whole blocks, and the head is DIM_1 + DIM_2 wide
    TMA: tl.constexpr,
    RUNNING: tl.constexpr,  # subtract the maximum so far, instead of the own row's
    FLAGGED: tl.constexpr,  # only blocks that overflowed
    PRECISION: tl.constexpr,
):
    item = tl.program_id(1).to(tl.int64)
    overflowed += item * tl.num_programs(0) + tl.program_id(0)
    if FLAGGED:  # noqa: SIM102 - decided by the compiler, the other by the GPU
        if tl.load(overflowed) == 0:
            return
    image, head = item // num_heads, item % num_heads
    tokens = height * width
    stride = 3 * channels
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = queries < tokens
    base = qkv + image * tokens * stride + head * DIM
    image_row = (image * tokens).to(tl.int32)
    k_column = (channels + head * DIM).to(tl.int32)
    v_column = (2 * channels + head * DIM).to(tl.int32)
    dims = tl.arange(0, DIM_1)
    more = DIM_1 + tl.arange(0, DIM_2 if DIM_2 else 16)
    columns = tl.arange(0, BLOCK_N)
    KIND: tl.constexpr = (DIM, EVEN, TMA)

    if EVEN:
        q = tl.load(base + queries[:, None] * stride + dims[None, :])
    else:
        q = tl.load(
            base + queries[:, None] * stride + dims[None, :],
            mask=real[:, None] & (dims[None, :] < DIM),
            other=0.0,
        )
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, DIM_1), tl.float32)
    q2 = q
    if DIM_2:
        q2 = tl.load(
            base + queries[:, None] * stride + more[None, :],
            mask=real[:, None] & (more[None, :] < DIM),
            other=0.0,
        )
        acc2 = tl.zeros((BLOCK_M, DIM_2), tl.float32)

    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    if not RUNNING:
        own_row = tl.program_id(0) * BLOCK_M // width
        inside = columns < width
        block = (image_row, inside, stride)
        k = _keys(tile_1, base + channels, own_row * width, k_column, dims, block, KIND)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if DIM_2:
            k = _keys(tile_2, base + channels, own_row * width, k_column + DIM_1, more, block, KIND)
            scores = tl.dot(q2, k.T, scores, input_precision=PRECISION)
        scores = scores * scale
        if POSITIONS:
            scores += _columns_term(rel_w, item * tokens + queries, width, 0, real, inside)
        if not EVEN:
            scores = tl.where(inside[None, :], scores, float("-inf"))
        top = tl.max(scores, 1)
        if POSITIONS:
            row_terms = rel_h + (item * height + own_row) * tokens + queries
            top += tl.load(row_terms, mask=real, other=0.0).to(tl.float32)

    for first in range(0, width, BLOCK_N):
        inside = first + columns < width
        block = (image_row, inside, stride)
        term_w = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        term_h = tl.zeros((BLOCK_M,), tl.float32)
        if POSITIONS:
            term_w = _columns_term(rel_w, item * tokens + queries, width, first, real, inside)
            rows = rel_h + item * height * tokens + queries
            term_h = tl.load(rows, mask=real, other=0.0).to(tl.float32)
        if not RUNNING:
            term_w -= top[:, None]
        for row in range(height):
            key = row * width + first
            k = _keys(tile_1, base + channels, key, k_column, dims, block, KIND)
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            if DIM_2:
                column = k_column + DIM_1
                k = _keys(tile_2, base + channels, key, column, more, block, KIND)
                scores = tl.dot(q2, k.T, scores, input_precision=PRECISION)
            if RUNNING:
                scores = scores * scale + term_w
            else:
                scores = scores * scale + (term_w + term_h[:, None])
            if not EVEN:
                scores = tl.where(inside[None, :], scores, float("-inf"))
            if RUNNING:
                # The rows' term is the same for all keys of the block: added to their maximum.
                new_top = tl.maximum(top, tl.max(scores, 1) + term_h)
                scores -= (new_top - term_h)[:, None]
                fade = tl.exp2(top - new_top)
                top = new_top
                total *= fade
                acc *= fade[:, None]
                if DIM_2:
                    acc2 *= fade[:, None]
            if POSITIONS:
                # The next row's term is loaded while its scores are computed.
                later = rows + tl.minimum(row + 1, height - 1) * tokens
                term_h = tl.load(later, mask=real, other=0.0).to(tl.float32)
            weights = tl.exp2(scores)
            total += tl.sum(weights, 1)
            weights = weights.to(q.dtype)
            v = _keys(tile_1, base + 2 * channels, key, v_column, dims, block, KIND)
            acc = tl.dot(weights, v, acc, input_precision=PRECISION)
            if DIM_2:
                column = v_column + DIM_1
                v = _keys(tile_2, base + 2 * channels, key, column, more, block, KIND)
                acc2 = tl.dot(weights, v, acc2, input_precision=PRECISION)

    if not RUNNING:
        # A comparison with NaN is false, so that it counts as too much.
        fits = tl.min((total < max_total).to(tl.int32), 0)
        tl.store(overflowed, 1 - fits)
    share = (1.0 / total)[:, None]
    places = out + (image * tokens + queries[:, None]) * channels + head * DIM
    tl.store(
        places + dims[None, :],
        (acc * share).to(out.dtype.element_ty),
        mask=real[:, None] & (dims[None, :] < DIM),
    )
    if DIM_2:
        tl.store(
            places + more[None, :],
            (acc2 * share).to(out.dtype.element_ty),
            mask=real[:, None] & (more[None, :] < DIM),
        )


def launch(
    qkv: Tensor, table_h: Tensor | None, table_w: Tensor | None, num_heads: int, config: Config
) -> Tensor:
    """Global attention.

    qkv      (B, H, W, 3 * C), contiguous
    table_h  (2 * H - 1, C / num_heads), contiguous, and table_w likewise with W; both None: no
             positions
    returns  (B, H, W, C)
    """
    batch, height, width, channels = qkv.shape
    out = qkv.new_empty(batch, height, width, channels // 3)
    image_bytes = num_heads * height * width * (height + width) * qkv.element_size()
    step = max(1, MAX_TERM_BYTES // image_bytes)
    for first in range(0, batch, step):
        part = slice(first, first + step)
        _launch(qkv[part], table_h, table_w, out[part], num_heads, config)
    return out


def _launch(
    qkv: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    out: Tensor,
    num_heads: int,
    config: Config,
) -> None:
    batch, height, width, channels = qkv.shape
    channels //= 3
    dim = channels // num_heads
    if table_h is not None and table_w is not None:
        rel_h, rel_w = positions.launch(qkv, table_h, table_w, num_heads)
    else:
        rel_h = rel_w = out  # never read
    on_hopper = table_h is not None and hopper_global.takes(qkv, num_heads)
    if on_hopper:
        config = AGAIN
    tokens = height * width
    dim_1, dim_2 = split_dim(dim)
    block_n = max(16, min(config.block_n, triton.next_power_of_2(width)))
    even = width % block_n == 0 and tokens % config.block_m == 0 and dim_1 + dim_2 == dim
    tma = config.tma and even and qkv.element_size() * channels % 16 == 0
    grid = (triton.cdiv(tokens, config.block_m), batch * num_heads)
    overflowed = torch.empty(grid[::-1], dtype=torch.int8, device=qkv.device)
    half = qkv.dtype == torch.float16
    for running, flagged in ((True, False),) if half else ((False, False), (True, True)):
        if on_hopper and not running:
            hopper_global.launch(qkv, rel_h, rel_w, out, overflowed, num_heads, MAX_TOTAL)
            continue
        _global_attention[grid](
            qkv,
            _tiles(qkv, block_n, dim_1) if tma else qkv,
            _tiles(qkv, block_n, dim_2) if tma and dim_2 else qkv,
            rel_h,
            rel_w,
            out,
            overflowed,
            num_heads,
            height,
            width,
            channels,
            dim**-0.5 * LOG2_E,
            MAX_TOTAL,
            DIM=dim,
            DIM_1=dim_1,
            DIM_2=dim_2,
            BLOCK_M=config.block_m,
            BLOCK_N=block_n,
            POSITIONS=table_h is not None,
            EVEN=even,
            TMA=tma,
            RUNNING=running,
            FLAGGED=flagged,
            PRECISION=dot_precision(qkv.dtype),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )


def _tiles(qkv: Tensor, rows: int, columns: int) -> Any:
    """The tokens as a matrix that the GPU's copy engine (TMA) reads in tiles."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(qkv.flatten(0, 2), [rows, columns])
