"""Token-to-image attention whose keys and values are rows of the image, not projected.

The queries are few and the keys many: the keys of an object are split over as many programs as
fill a GPU, and a second kernel combines their partial sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.decoding.kernels import hopper_rows, hopper_token_to_image
from samfast.device.kernels.arithmetic import LOG2_E, dot_precision
from samfast.device.kernels.occupancy import best_splits, has_large_shared_memory
from samfast.device.kernels.tiles import load_rows


@triton.jit
def _token_to_image_attention(
    queries,
    images,
    position,
    source_of,
    out,
    tops,
    totals,
    count,  # objects
    tokens,  # per object
    rows,  # queries per object: heads * tokens
    places,  # per image
    span,  # places per program
    scale,  # of the scores, times log2(e)
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EVEN: tl.constexpr,  # every program has whole blocks of places
    SPLIT: tl.constexpr,  # sums stay unnormalised, to be combined
    PRECISION: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    base = images + tl.load(source_of + item).to(tl.int64) * places * C
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, places)
    row = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = row < rows
    row = (row // tokens * count + item) * tokens + row % tokens  # in (heads, objects, tokens)
    q = load_rows(queries, row, real, C, False)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, C), tl.float32)
    for first in range(start, end, BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        inside = place < end
        x = load_rows(base, place, inside, C, EVEN)
        x_position = load_rows(position, place, inside, C, EVEN)
        # Two products instead of a sum: the rows reach the tensor cores without registers.
        scores = tl.dot(q, x.T, input_precision=PRECISION)
        scores = tl.dot(q, x_position.T, scores, input_precision=PRECISION)
        scores = scores * scale
        if not EVEN:
            scores = tl.where(inside[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        fade = tl.exp2(top - new_top)
        top = new_top
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(q.dtype), x, acc * fade[:, None], input_precision=PRECISION)
    if SPLIT:
        row += tl.program_id(1).to(tl.int64) * count * rows
        tl.store(tops + row, top, mask=real)
        tl.store(totals + row, total, mask=real)
    else:
        acc = acc * (1.0 / total)[:, None]
    answers = out + row[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(answers, acc.to(out.dtype.element_ty), mask=real[:, None])


@triton.jit
def _combine_splits(
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
    """The answer of one row: the sums over all splits of its keys, scaled to the same maximum."""
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
    images: Tensor,
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
    """As `samfast.decoding.decoder_operations.token_to_image_attention`.

    block_m  queries per program, and block_n keys at a time
    splits   programs for the keys of an object
    None: as fits an H100, where one warpgroup that holds the sums of all 64 queries beats two
    """
    heads, count, tokens, channels = queries.shape
    places = images.shape[1]
    out = torch.empty_like(queries)
    if out.numel() == 0:
        return out
    rows, wide = heads * tokens, queries.dtype == torch.float32
    large = not wide and has_large_shared_memory(queries.device)
    block_m = block_m or max(16, min(128 if large else 64, triton.next_power_of_2(rows)))
    small = block_m <= 64 and large
    block_n = block_n or (16 if wide else 64 if small else 32)
    row_blocks = triton.cdiv(rows, block_m)
    items = count * row_blocks
    on_hopper = hopper_token_to_image.takes(queries, source_of)
    if on_hopper:
        block_n = hopper_rows.TILE
        items = hopper_token_to_image.GROUPS * triton.cdiv(count, hopper_token_to_image.GROUPS)
    blocks = triton.cdiv(places, block_n)
    splits = min(splits or best_splits(items, blocks), blocks)
    span = triton.cdiv(blocks, splits) * block_n
    splits = triton.cdiv(places, span)  # none without a key
    split = splits > 1
    parts = queries.new_empty(splits, *queries.shape, dtype=torch.float32) if split else out
    all_rows = heads * count * tokens
    tops, totals = queries.new_empty(2, splits, all_rows, dtype=torch.float32).unbind()
    inputs, written = (queries, images, position, source_of), (parts, tops, totals)
    if on_hopper:
        hopper_token_to_image.launch(*inputs, scale, written, span)
    else:
        sizes = (count, tokens, rows, places, span)
        _token_to_image_attention[(count, splits, row_blocks)](
            *inputs,
            *written,
            *sizes,
            scale * LOG2_E,
            C=channels,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            EVEN=places % block_n == 0,
            SPLIT=split,
            PRECISION=dot_precision(queries.dtype),
            num_warps=warps or (4 if small else 8),
            num_stages=stages or (1 if wide else 3 if small else 2),
        )
    if split:
        block_c, padded = min(256, channels), triton.next_power_of_2(splits)
        sums = (parts, tops, totals, out, all_rows, splits)
        _combine_splits[(all_rows, channels // block_c)](
            *sums, C=channels, BLOCK_C=block_c, SPLITS=padded, num_warps=4
        )
    return out
