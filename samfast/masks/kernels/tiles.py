"""Low-resolution logits to masks, packed masks and measures; logits of the square or the image are never stored.

A pixel of the image blends four of the model's square, each of which blends four logits: sixteen reads, nearly all
of which the cache answers. Both blends are written as PyTorch writes them, so only a logit within rounding of the
threshold may fall to the other side.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.masks.frame import Frame
from samfast.masks.measures import Measures, Upscaled
from samfast.masks.packed import BITS, words

COLUMNS = 32
"""Columns at a time: with eight warps four pixels a thread, whose sixteen reads each then fit its registers."""
PROGRAMS = 1024
"""Programs that fill a large GPU several times over; fewer masks are cut into more pieces."""


@triton.jit
def _between(target, scale, size):
    """The two pixels of a line of `size` that a pixel of the resized line lies between, and their weights."""
    place = tl.maximum((target.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    first = tl.minimum(place.to(tl.int32), size - 1)  # beyond the image too it is a place that can be read
    share = tl.minimum(place - first.to(tl.float32), 1.0)
    return first, tl.minimum(first + 1, size - 1), 1.0 - share, share


@triton.jit
def _blend(a, b, c, d, up, down, left, right):
    return up * (left * a + right * b) + down * (left * c + right * d)


@triton.jit
def _square(logits, above, below, up, down, before, after, left, right):
    """Pixels of the square: rows (ROWS, 1) given by two rows' offsets and weights, columns (1, COLUMNS) alike."""
    a = tl.load(logits + (above + before)).to(tl.float32)
    b = tl.load(logits + (above + after)).to(tl.float32)
    c = tl.load(logits + (below + before)).to(tl.float32)
    d = tl.load(logits + (below + after)).to(tl.float32)
    return _blend(a, b, c, d, up, down, left, right)


@triton.jit(
    do_not_specialize=["inside_h", "inside_w", "height", "width", "span"]
)  # any image, one compilation
def _tiles(
    low_res,
    masks,
    packed,
    measures,
    wanted,
    low_h,
    low_w,
    inside_h,  # of the image inside the square
    inside_w,
    height,  # of the image
    width,
    span,  # columns of a program
    low_scale_y,
    low_scale_x,
    scale_y,
    scale_x,
    threshold,
    inner,
    outer,
    MASKS: tl.constexpr,
    PACK: tl.constexpr,
    MEASURE: tl.constexpr,
    SOME: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One mask's rows, as many as a word has bits, and `span` of their columns."""
    mask = tl.program_id(0).to(tl.int64)
    band = tl.program_id(1)
    logits = low_res + mask * (low_h * low_w)
    bit = tl.arange(0, ROWS)[:, None]
    y = band * ROWS + bit
    row_1, row_2, share_1, share_2 = _between(y, scale_y, inside_h)
    above_1, below_1, up_1, down_1 = _between(row_1, low_scale_y, low_h)
    above_2, below_2, up_2, down_2 = _between(row_2, low_scale_y, low_h)
    above_1, below_1, above_2, below_2 = above_1 * low_w, below_1 * low_w, above_2 * low_w, below_2 * low_w
    first = tl.program_id(2) * span
    last = tl.minimum(first + span, width)
    if SOME:
        last = tl.where(tl.load(wanted + mask) != 0, last, first)  # else no column is done
    if MEASURE:
        area = tl.zeros((ROWS, COLUMNS), tl.int32)
        within = tl.zeros((ROWS, COLUMNS), tl.int32)
        around = tl.zeros((ROWS, COLUMNS), tl.int32)
        leftmost = tl.full((ROWS, COLUMNS), 2147483647, tl.int32)
        rightmost = tl.full((ROWS, COLUMNS), -1, tl.int32)
    for start in range(first, last, COLUMNS):
        x = start + tl.arange(0, COLUMNS)[None, :]
        real = (y < height) & (x < last)
        column_1, column_2, part_1, part_2 = _between(x, scale_x, inside_w)
        before_1, after_1, left_1, right_1 = _between(column_1, low_scale_x, low_w)
        before_2, after_2, left_2, right_2 = _between(column_2, low_scale_x, low_w)
        a = _square(logits, above_1, below_1, up_1, down_1, before_1, after_1, left_1, right_1)
        b = _square(logits, above_1, below_1, up_1, down_1, before_2, after_2, left_2, right_2)
        c = _square(logits, above_2, below_2, up_2, down_2, before_1, after_1, left_1, right_1)
        d = _square(logits, above_2, below_2, up_2, down_2, before_2, after_2, left_2, right_2)
        value = _blend(a, b, c, d, share_1, share_2, part_1, part_2)
        is_set = real & (value > threshold)
        if MASKS:
            place = masks + mask * height * width + (y * width + x)
            tl.store(place, is_set.to(tl.uint8), mask=real)
        if PACK:
            word = tl.sum(is_set.to(tl.int32) << bit, axis=0)
            column = start + tl.arange(0, COLUMNS)
            place = packed + mask * width * tl.num_programs(1) + (column * tl.num_programs(1) + band)
            tl.store(place, word, mask=column < last)
        if MEASURE:
            area += is_set.to(tl.int32)
            within += (real & (value > inner)).to(tl.int32)
            around += (real & (value > outer)).to(tl.int32)
            leftmost = tl.minimum(leftmost, tl.where(is_set, x, 2147483647))
            rightmost = tl.maximum(rightmost, tl.where(is_set, x, -1))
    if MEASURE:
        own = measures + mask * 7
        rows = tl.sum(area, axis=1)
        total = tl.sum(rows, axis=0)
        wide = tl.sum(tl.sum(around, axis=1), axis=0)
        row = band * ROWS + tl.arange(0, ROWS)
        if wide > 0:
            tl.atomic_add(own + 2, wide)
            tl.atomic_add(own + 1, tl.sum(tl.sum(within, axis=1), axis=0))
        if total > 0:
            tl.atomic_add(own, total)
            tl.atomic_min(own + 3, tl.min(tl.min(leftmost, axis=1), axis=0))
            tl.atomic_min(own + 4, tl.min(tl.where(rows > 0, row, 2147483647), axis=0))
            tl.atomic_max(own + 5, tl.max(tl.max(rightmost, axis=1), axis=0))
            tl.atomic_max(own + 6, tl.max(tl.where(rows > 0, row, -1), axis=0))


def launch(
    low_res: Tensor,
    frame: Frame,
    threshold: float,
    *,
    offset: float | None = None,
    masks: bool = False,
    pack: bool = False,
    wanted: Tensor | None = None,
) -> Upscaled:
    """One launch for all of N masks; nothing waits for the GPU.

    low_res    (N, h, w) float32, float16 or bfloat16; the image must have fewer than 2**31 pixels
    threshold  a pixel is set if its logit is above it; NaN is not
    offset     measure, with counts at the threshold plus and minus this
    masks, pack  give the masks, as bool, as bits
    wanted     (N,) bool: of other masks all measures are 0, and what is given of them is undefined; None: all are
    """
    count, low_h, low_w = low_res.shape
    (inside_h, inside_w), (height, width) = frame.input_size, frame.original_size
    low_res, device = low_res.contiguous(), low_res.device
    made = torch.empty((count, height, width), dtype=torch.bool, device=device) if masks else None
    bits = torch.empty((count, width, words(height)), dtype=torch.int32, device=device) if pack else None
    counts = torch.zeros((count, 7), dtype=torch.int32, device=device) if offset is not None else None
    if counts is not None:
        counts[:, 3:5] = 2**31 - 1
        counts[:, 5:] = -1
    bands = words(height)
    pieces = min(triton.cdiv(width, COLUMNS), triton.cdiv(PROGRAMS, max(1, count * bands)))
    span = triton.cdiv(triton.cdiv(width, pieces), COLUMNS) * COLUMNS
    if count:
        _tiles[(count, bands, triton.cdiv(width, span))](
            low_res,
            low_res if made is None else made.view(torch.uint8),
            low_res if bits is None else bits,
            low_res if counts is None else counts,
            low_res if wanted is None else wanted.contiguous().view(torch.uint8),
            low_h,
            low_w,
            inside_h,
            inside_w,
            height,
            width,
            span,
            _scale(low_h, frame.side),
            _scale(low_w, frame.side),
            _scale(inside_h, height),
            _scale(inside_w, width),
            threshold,
            threshold + (offset or 0.0),
            threshold - (offset or 0.0),
            MASKS=masks,
            PACK=pack,
            MEASURE=offset is not None,
            SOME=wanted is not None,
            ROWS=BITS,
            COLUMNS=COLUMNS,
            num_warps=8,
        )
    return Upscaled(None if counts is None else _measures(counts), made, bits)


def _scale(source: int, target: int) -> float:
    """As PyTorch has it: divided in float32."""
    return float(np.float32(source) / np.float32(target))


def _measures(counts: Tensor) -> Measures:
    area, inner, outer = counts[:, 0], counts[:, 1], counts[:, 2]
    around = counts[:, 3:].long()
    return Measures(area, torch.where(area[:, None] > 0, around, 0), inner, outer)
