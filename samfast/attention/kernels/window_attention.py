"""Window attention that reads q, k and v where the projection left them.

Nothing is partitioned, padded or copied: a program finds its window's tokens in the grid, takes the
padding token beyond the grid's edge (q, k and v of zeros are the projection's bias), and computes
no query that would be dropped. The relative-position terms of the scores are one more product, into
the same accumulator: a query's terms for the window's rows and columns times the keys' one-hot rows
and columns.

The sides of a tile are powers of two, and a quarter of one of 256 would be wasted on a window of
14 x 14 = 196 keys. So they are held as up to three tiles, 128 + 64 + 16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.attention.kernels import global_attention
from samfast.attention.kernels.tunables import Config, split_dim
from samfast.attention.windowing import partition, unpartition
from samfast.device.kernels.arithmetic import LOG2_E, dot_precision

MAX_WINDOW = 16
"""Side of the largest window whose keys a program holds at once; larger ones are partitioned."""

MAX_FLOAT32_DIM = 32
"""Width of the widest head whose window of float32 keys a program holds at once."""


@triton.jit
def _rows_of(tile, pad, places, dims, real, DIM: tl.constexpr):
    """Rows `places` of the tile, or the padding token where they are not real."""
    # Which address is read is chosen, not which value: one instruction for eight values.
    rows = tl.where(real, tile + places, pad)[:, None] + dims[None, :]
    if DIM % 16 == 0:
        return tl.load(rows)
    return tl.load(rows, mask=(dims < DIM)[None, :], other=0.0)


@triton.jit
def _keys(
    base,
    pads,
    place,
    FIRST: tl.constexpr,  # first key, and how many
    COUNT: tl.constexpr,
    START: tl.constexpr,  # first column of the head to read, and how many
    COLUMNS: tl.constexpr,
    SHAPE: tl.constexpr,  # WINDOW, LINES and DIM of the kernel
):
    """Some keys of the window: k and v (COUNT, COLUMNS), and one-hot lines (2 * LINES, COUNT)."""
    top_row, left, height, width, channels = place
    WINDOW: tl.constexpr = SHAPE[0]
    LINES: tl.constexpr = SHAPE[1]
    DIM: tl.constexpr = SHAPE[2]
    key = FIRST + tl.arange(0, COUNT)
    row, column = top_row + key // WINDOW, left + key % WINDOW
    real = (key < WINDOW * WINDOW) & (row < height) & (column < width)
    places = (row * width + column) * (3 * channels)
    dims = START + tl.arange(0, COLUMNS)
    k = _rows_of(base + channels, pads + channels, places, dims, real, DIM)
    v = _rows_of(base + 2 * channels, pads + 2 * channels, places, dims, real, DIM)
    kind = tl.arange(0, 2 * LINES)[:, None]
    line = tl.where(kind < LINES, (key // WINDOW)[None, :], LINES + (key % WINDOW)[None, :])
    return k, v, (kind == line).to(k.dtype)


@triton.jit
def _scores(
    queries,
    keys,
    more,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    AREA: tl.constexpr,
    DIM_2: tl.constexpr,
    POSITIONS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(BLOCK_M, COUNT): scores of the keys FIRST, ..., not scaled, -inf beyond the window."""
    q, q2, terms = queries
    scores = tl.dot(q, keys[0].T, input_precision=PRECISION)
    if DIM_2:
        scores = tl.dot(q2, more[0].T, scores, input_precision=PRECISION)
    if POSITIONS:
        scores = tl.dot(terms, keys[2], scores, input_precision=PRECISION)
    if FIRST + COUNT > AREA:
        scores = tl.where((FIRST + tl.arange(0, COUNT) < AREA)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def _queries(
    start,
    base,
    out,
    tables,
    keys,
    more_keys,
    place,
    scales,
    BLOCK_M: tl.constexpr,
    SLOTS: tl.constexpr,
    DIMS: tl.constexpr,  # DIM_1 and DIM_2 of the kernel
    COUNTS: tl.constexpr,  # COUNT_1, COUNT_2 and COUNT_3 of the kernel
    SHAPE: tl.constexpr,  # WINDOW, LINES and DIM of the kernel
    POSITIONS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The answers of BLOCK_M queries of the window, from its query `start` on."""
    table, table2 = tables
    keys_1, keys_2, keys_3 = keys
    more_1, more_2, more_3 = more_keys
    image, head, top_row, left, height, width, channels = place
    scale, root = scales
    WINDOW: tl.constexpr = SHAPE[0]
    LINES: tl.constexpr = SHAPE[1]
    DIM: tl.constexpr = SHAPE[2]
    DIM_1: tl.constexpr = DIMS[0]
    DIM_2: tl.constexpr = DIMS[1]
    COUNT_1: tl.constexpr = COUNTS[0]
    COUNT_2: tl.constexpr = COUNTS[1]
    COUNT_3: tl.constexpr = COUNTS[2]
    AREA: tl.constexpr = WINDOW * WINDOW
    query = start + tl.arange(0, BLOCK_M)
    row, column = query // WINDOW, query % WINDOW
    real = ((query < AREA) & (top_row + row < height) & (left + column < width))[:, None]
    token = (top_row + row) * width + left + column
    dims = tl.arange(0, DIM_1)[None, :]
    more = DIM_1 + tl.arange(0, DIM_2 if DIM_2 else 16)[None, :]
    q = tl.load(base + token[:, None] * (3 * channels) + dims, mask=real & (dims < DIM), other=0.0)
    q2 = q
    if DIM_2:
        q2 = tl.load(
            base + token[:, None] * (3 * channels) + more, mask=real & (more < DIM), other=0.0
        )
    terms = q
    if POSITIONS:
        products = tl.dot(q, table, input_precision=PRECISION)
        if DIM_2:
            products = tl.dot(q2, table2, products, input_precision=PRECISION)
        # Of the products with all rows of the tables, those at offsets from the keys' lines.
        kind = tl.arange(0, 2 * LINES)[None, :]
        offset = tl.where(
            kind < LINES,
            row[:, None] - kind + WINDOW - 1,
            SLOTS + column[:, None] - (kind - LINES) + WINDOW - 1,
        )
        offset = tl.minimum(tl.maximum(offset, 0), 2 * SLOTS - 1)
        terms = tl.gather((products * root).to(q.dtype), offset, 1)
    queries = (q, q2, terms)
    FIRST_3: tl.constexpr = COUNT_1 + COUNT_2
    a = _scores(queries, keys_1, more_1, 0, COUNT_1, AREA, DIM_2, POSITIONS, PRECISION)
    top = tl.max(a, 1)
    if COUNT_2:
        b = _scores(queries, keys_2, more_2, COUNT_1, COUNT_2, AREA, DIM_2, POSITIONS, PRECISION)
        top = tl.maximum(top, tl.max(b, 1))
    if COUNT_3:
        c = _scores(queries, keys_3, more_3, FIRST_3, COUNT_3, AREA, DIM_2, POSITIONS, PRECISION)
        top = tl.maximum(top, tl.max(c, 1))
    top = (top * scale)[:, None]
    a = tl.exp2(a * scale - top)
    total = tl.sum(a, 1)
    a = a.to(q.dtype)
    acc = tl.dot(a, keys_1[1], input_precision=PRECISION)
    if DIM_2:
        acc2 = tl.dot(a, more_1[1], input_precision=PRECISION)
    if COUNT_2:
        b = tl.exp2(b * scale - top)
        total += tl.sum(b, 1)
        b = b.to(q.dtype)
        acc = tl.dot(b, keys_2[1], acc, input_precision=PRECISION)
        if DIM_2:
            acc2 = tl.dot(b, more_2[1], acc2, input_precision=PRECISION)
    if COUNT_3:
        c = tl.exp2(c * scale - top)
        total += tl.sum(c, 1)
        c = c.to(q.dtype)
        acc = tl.dot(c, keys_3[1], acc, input_precision=PRECISION)
        if DIM_2:
            acc2 = tl.dot(c, more_3[1], acc2, input_precision=PRECISION)
    share = (1.0 / total)[:, None]
    answers = out + (image * height * width + token[:, None]) * channels + head * DIM
    tl.store(answers + dims, (acc * share).to(out.dtype.element_ty), mask=real & (dims < DIM))
    if DIM_2:
        tl.store(answers + more, (acc2 * share).to(out.dtype.element_ty), mask=real & (more < DIM))


@triton.jit
def _window_attention(
    qkv,
    table_h,  # (2 * WINDOW - 1, DIM)
    table_w,
    pad,
    out,
    num_heads,
    height,
    width,
    channels,
    across,  # windows in a row of windows
    scale,  # of the scores, times log2(e)
    root,  # times which the terms have the scale of unscaled scores
    WINDOW: tl.constexpr,
    SLOTS: tl.constexpr,  # a power of two >= 2 * WINDOW - 1
    LINES: tl.constexpr,  # a power of two >= WINDOW
    DIM: tl.constexpr,
    DIM_1: tl.constexpr,
    DIM_2: tl.constexpr,  # the rest of a head whose width is not a power of two, or 0
    BLOCK_M: tl.constexpr,
    COUNT_1: tl.constexpr,  # keys of each tile, or 0
    COUNT_2: tl.constexpr,
    COUNT_3: tl.constexpr,
    POSITIONS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    square = tl.program_id(0)
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    top_row = (square // across) * WINDOW
    left = (square % across) * WINDOW
    base = qkv + image * height * width * 3 * channels + head * DIM
    pads = pad + head * DIM
    table = 0
    table2 = 0
    if POSITIONS:
        # The tables for rows and columns side by side, each padded to SLOTS.
        slot = tl.arange(0, 2 * SLOTS)
        here = tl.where(slot < SLOTS, table_h + slot * DIM, table_w + (slot - SLOTS) * DIM)[None, :]
        filled = (slot % SLOTS < 2 * WINDOW - 1)[None, :]
        dims = tl.arange(0, DIM_1)[:, None]
        table = tl.load(here + dims, mask=filled & (dims < DIM), other=0.0)
        if DIM_2:
            more = DIM_1 + tl.arange(0, DIM_2)[:, None]
            table2 = tl.load(here + more, mask=filled & (more < DIM), other=0.0)
    place = (top_row, left, height, width, channels)
    SHAPE: tl.constexpr = (WINDOW, LINES, DIM)
    FIRST_3: tl.constexpr = COUNT_1 + COUNT_2
    keys_1 = _keys(base, pads, place, 0, COUNT_1, 0, DIM_1, SHAPE)
    keys_2, keys_3, more_1, more_2, more_3 = keys_1, keys_1, keys_1, keys_1, keys_1
    if COUNT_2:
        keys_2 = _keys(base, pads, place, COUNT_1, COUNT_2, 0, DIM_1, SHAPE)
    if COUNT_3:
        keys_3 = _keys(base, pads, place, FIRST_3, COUNT_3, 0, DIM_1, SHAPE)
    if DIM_2:
        more_1 = _keys(base, pads, place, 0, COUNT_1, DIM_1, DIM_2, SHAPE)
        if COUNT_2:
            more_2 = _keys(base, pads, place, COUNT_1, COUNT_2, DIM_1, DIM_2, SHAPE)
        if COUNT_3:
            more_3 = _keys(base, pads, place, FIRST_3, COUNT_3, DIM_1, DIM_2, SHAPE)
    keys, more_keys = (keys_1, keys_2, keys_3), (more_1, more_2, more_3)
    COUNTS: tl.constexpr = (COUNT_1, COUNT_2, COUNT_3)
    # Rows of the window beyond the grid's edge have no queries.
    for start in range(0, tl.minimum(height - top_row, WINDOW) * WINDOW, BLOCK_M):
        _queries(
            start, base, out, (table, table2), keys, more_keys,
            (image, head, top_row, left, height, width, channels), (scale, root),
            BLOCK_M, SLOTS, (DIM_1, DIM_2), COUNTS, SHAPE, POSITIONS, PRECISION,
        )  # fmt: skip


def launch(
    qkv: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    pad: Tensor | None,
    num_heads: int,
    window: int,
    config: Config,
) -> Tensor:
    """Window attention.

    qkv      (B, H, W, 3 * C), contiguous
    table_h  (2 * window - 1, C / num_heads), and table_w likewise; both None: no positions
    pad      (3 * C,): q, k, v of a padding token; None: zeros
    returns  (B, H, W, C)
    """
    batch, height, width, channels = qkv.shape
    channels //= 3
    dim = channels // num_heads
    # In float32, where keys and values are kept as two halves, those of wide heads do not fit the
    # memory of a multiprocessor.
    if window > MAX_WINDOW or (qkv.dtype == torch.float32 and dim > MAX_FLOAT32_DIM):
        windows = partition(qkv, window, pad).contiguous()  # a view if they are in one row
        config = Config(config.block_m, 64, config.num_warps, config.num_stages)
        out = global_attention.launch(windows, table_h, table_w, num_heads, config)
        return unpartition(out, window, height, width)
    area = window * window
    out = qkv.new_empty(batch, height, width, channels)
    slots = max(16, triton.next_power_of_2(2 * window - 1))
    count_1, count_2, count_3 = tiles(area)
    dim_1, dim_2 = split_dim(dim)
    down, across = triton.cdiv(height, window), triton.cdiv(width, window)
    _window_attention[(down * across, num_heads, batch)](
        qkv,
        qkv if table_h is None else table_h,  # without positions, neither is read
        qkv if table_w is None else table_w,
        qkv.new_zeros(3 * channels) if pad is None else pad.contiguous(),
        out,
        num_heads,
        height,
        width,
        channels,
        across,
        dim**-0.5 * LOG2_E,
        dim**0.5,
        WINDOW=window,
        SLOTS=slots,
        LINES=max(8, triton.next_power_of_2(window)),
        DIM=dim,
        DIM_1=dim_1,
        DIM_2=dim_2,
        BLOCK_M=min(config.block_m, max(16, triton.next_power_of_2(area))),
        COUNT_1=count_1,
        COUNT_2=count_2,
        COUNT_3=count_3,
        POSITIONS=table_h is not None,
        PRECISION=dot_precision(qkv.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def tiles(keys: int) -> tuple[int, int, int]:
    """At most three powers of two from 16, falling, that hold the keys: 196 -> (128, 64, 16)."""
    counts: list[int] = []
    while keys > 0 and len(counts) < 3:
        count = max(16, triton.next_power_of_2(keys))
        if count > keys and len(counts) < 2 and count > 16:
            count //= 2
        counts.append(count)
        keys -= count
    first, second, third = (*counts, 0, 0)[:3]
    return first, second, third
