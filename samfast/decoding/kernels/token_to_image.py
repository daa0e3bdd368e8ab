"""Tokens that look at an image: attention whose keys and values are the image's own rows, not
projected.

Few queries and many keys: the keys of an object are split over several programs, as many as keep a
GPU busy, and a second kernel joins what they found.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.attention.kernels.positions import LOG2_E
from samfast.device.kernels.occupancy import has_large_shared_memory
from samfast.device.kernels.occupancy import parts as parts_of
from samfast.device.kernels.tiles import load_rows


@triton.jit
def _from_image(
    queries,
    keys,
    position,
    source_of,
    out,
    tops,
    totals,
    count,  # of objects
    tokens,  # of an object
    rows,  # queries of an object: heads * tokens
    places,  # of an image
    span,  # places of a program
    scale,  # of the scores, times log2(e)
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EVEN: tl.constexpr,  # a program's places are whole blocks
    SPLIT: tl.constexpr,  # the sums are kept as they are, to be joined with others
    PRECISION: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    base = keys + tl.load(source_of + item).to(tl.int64) * places * C
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, places)
    row = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    asked = row < rows
    row = (row // tokens * count + item) * tokens + row % tokens  # of (heads, objects, tokens)
    q = load_rows(queries, row, asked, C, False)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, C), tl.float32)
    for first in range(start, end, BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        inside = place < end
        seen = load_rows(base, place, inside, C, EVEN)
        where = load_rows(position, place, inside, C, EVEN)
        # Two products, not a sum: so the rows go from memory to the tensor cores and through no
        # register.
        scores = tl.dot(q, seen.T, input_precision=PRECISION)
        scores = tl.dot(q, where.T, scores, input_precision=PRECISION)
        scores = scores * scale
        if not EVEN:
            scores = tl.where(inside[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        fade = tl.exp2(top - new_top)
        top = new_top
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(q.dtype), seen, acc * fade[:, None], input_precision=PRECISION)
    if SPLIT:
        row += tl.program_id(1).to(tl.int64) * count * rows
        tl.store(tops + row, top, mask=asked)
        tl.store(totals + row, total, mask=asked)
    else:
        acc = acc * (1.0 / total)[:, None]
    tl.store(
        out + row[:, None] * C + tl.arange(0, C)[None, :],
        acc.to(out.dtype.element_ty),
        mask=asked[:, None],
    )


@triton.jit
def _join(
    parts,
    tops,
    totals,
    out,
    all_rows,
    splits,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SPLITS: tl.constexpr,  # a power of two, at least splits
):
    """One row's answer: the sums of all parts of its keys, each brought to the same maximum."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.arange(0, SPLITS).to(tl.int64)
    real = split < splits
    top = tl.load(tops + split * all_rows + row, mask=real, other=float("-inf"))
    weights = tl.exp2(top - tl.max(top, 0))
    total = tl.sum(weights * tl.load(totals + split * all_rows + row, mask=real, other=0.0), 0)
    place = (split * all_rows + row)[:, None] * C + channel[None, :]
    part = tl.load(parts + place, mask=real[:, None], other=0.0)
    answer = tl.sum(part * weights[:, None], 0) / total
    tl.store(out + row * C + channel, answer.to(out.dtype.element_ty))


def launch(
    queries: Tensor,
    keys: Tensor,
    position: Tensor,
    source_of: Tensor,
    scale: float,
    *,
    block_m: int | None = None,
    block_n: int | None = None,
    splits: int | None = None,
    warps: int | None = None,
    stages: int | None = None,
) -> Tensor:
    """As `samfast.decoding.decoder_reference.from_image`.

    block_m  queries of a program, and block_n keys at a time
    splits   programs for the keys of an object
    None: as fits an H100; one warpgroup that holds all of 64 queries' sums beats two that share
    them
    """
    heads, count, tokens, channels = queries.shape
    places = keys.shape[1]
    out = torch.empty_like(queries)
    if out.numel() == 0:
        return out
    rows, wide = heads * tokens, queries.dtype == torch.float32
    room = not wide and has_large_shared_memory(queries.device)
    block_m = block_m or max(16, min(128 if room else 64, triton.next_power_of_2(rows)))
    small = block_m <= 64 and room
    block_n = block_n or (16 if wide else 64 if small else 32)
    row_blocks, blocks = triton.cdiv(rows, block_m), triton.cdiv(places, block_n)
    splits = min(splits or parts_of(count * row_blocks, blocks), blocks)
    span = triton.cdiv(blocks, splits) * block_n
    splits = triton.cdiv(places, span)  # none without a key
    split = splits > 1
    parts = queries.new_empty(splits, *queries.shape, dtype=torch.float32) if split else out
    tops, totals = queries.new_empty(
        2, splits, heads * count * tokens, dtype=torch.float32
    ).unbind()
    _from_image[(count, splits, row_blocks)](
        queries,
        keys,
        position,
        source_of,
        parts,
        tops,
        totals,
        count,
        tokens,
        rows,
        places,
        span,
        scale * LOG2_E,
        C=channels,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        EVEN=places % block_n == 0,
        SPLIT=split,
        PRECISION="tf32x3" if wide else "tf32",
        num_warps=warps or (4 if small else 8),
        num_stages=stages or (1 if wide else 3 if small else 2),
    )
    if split:
        block_c = min(256, channels)
        _join[(heads * count * tokens, channels // block_c)](
            parts,
            tops,
            totals,
            out,
            heads * count * tokens,
            splits,
            C=channels,
            BLOCK_C=block_c,
            SPLITS=triton.next_power_of_2(splits),
            num_warps=4,
        )
    return out
