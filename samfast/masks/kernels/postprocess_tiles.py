"""Low-resolution logits to masks, packed masks and measures; logits of the square or the image are
never stored.

A pixel of the image blends four of the model's square, each of which blends four logits. Both
resizes go by rows and by columns apart, so it is four rows' logits that a column blends, and then
four columns of that, which neighbours share: a program blends the rows of a window of logits once,
and each pixel picks its four columns of it. Where all logits of a window are below what is asked,
or all above, as nearly everywhere but at a mask's edge, that is known without. The products are
PyTorch's, but summed in another order: a logit within rounding of the threshold may fall to the
other side.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.masks.bit_masks import BITS, words
from samfast.masks.measures import Measures, Upscaled
from samfast.masks.resize_geometry import ResizeGeometry

COLUMNS = 64
"""Columns of the image at a time: so many that its four columns of a pixel are one thread's."""
ROUNDING, LARGE = 1e-4, 1e30
"""Of blends, relative and far more than theirs; and logits that nobody has."""
SEEN = 16384
"""Logits that a program looks at before it blends any; the more of an image below 150 pixels are
too many."""
PROGRAMS = 1024
"""Programs that fill a large GPU several times over; fewer masks are cut into more pieces."""


@triton.jit
def _between(target, scale, size):
    """The two pixels of a line of `size` that a pixel of the resized line lies between, and their
    weights.
    """
    place = tl.maximum((target.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    first = tl.minimum(
        place.to(tl.int32), size - 1
    )  # beyond the image too it is a place that can be read
    share = tl.minimum(place - first.to(tl.float32), 1.0)
    return first, tl.minimum(first + 1, size - 1), 1.0 - share, share


@triton.jit
def _tap(target, tap, scale, inside, low_scale, low):
    """Which of a line of `low` logits a pixel of the image's line takes as number `tap` of its
    four; its weight.
    """
    first, second, left, right = _between(target, scale, inside)
    before, after, near, far = _between(tl.where(tap < 2, first, second), low_scale, low)
    odd = tap % 2 == 1
    return tl.where(odd, after, before), tl.where(tap < 2, left, right) * tl.where(odd, far, near)


@triton.jit
def _row(logits, row, weight, low_w, column):
    """(ROWS, WINDOW): the logits of one row for each of the image's, weighted."""
    # By a mask, not by a minimum: else the compiler does not see that columns follow each other.
    inside = (column < low_w)[None, :]
    return weight[:, None] * tl.load(
        logits + row[:, None] * low_w + column[None, :], mask=inside, other=0.0
    ).to(tl.float32)


@triton.jit
def _extremes(logits, line, low_h, column, low_w):
    """The least and the largest of a window of logits; NaN, which is above no threshold, counts as
    the lowest.
    """
    inside = (line < low_h)[:, None] & (column < low_w)[None, :]
    value = tl.load(logits + line[:, None] * low_w + column[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    value = tl.where(value == value, value, float("-inf"))
    least = tl.min(tl.min(tl.where(inside, value, float("inf")), axis=1), axis=0)
    return least, tl.max(tl.max(tl.where(inside, value, float("-inf")), axis=1), axis=0)


@triton.jit(
    do_not_specialize=["inside_h", "inside_w", "height", "width", "span"]
)  # few compilations: the constants change in steps with how much an image is enlarged
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
    below,  # what is below is below all of these, rounding included
    above,
    MASKS: tl.constexpr,
    PACK: tl.constexpr,
    MEASURE: tl.constexpr,
    SOME: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    # logits of a row that so many columns of the image may take, a power of two
    WINDOW: tl.constexpr,
    LINES: tl.constexpr,  # and of a column that so many rows may take
    LOW: tl.constexpr,  # logits of a whole row, rounded up likewise
    LARGE: tl.constexpr,  # beyond it are numbers of which zero times one may be NaN
    SKIP: tl.constexpr,  # whether the logits of a window are few enough to be looked at first
):
    """One mask's rows, as many as a word has bits, and `span` of their columns."""
    mask = tl.program_id(0).to(tl.int64)
    band = tl.program_id(1)
    logits = low_res + mask * (low_h * low_w)
    bit = tl.arange(0, ROWS)
    row = band * ROWS + bit
    row_0, share_0 = _tap(row, 0, scale_y, inside_h, low_scale_y, low_h)
    row_1, share_1 = _tap(row, 1, scale_y, inside_h, low_scale_y, low_h)
    row_2, share_2 = _tap(row, 2, scale_y, inside_h, low_scale_y, low_h)
    row_3, share_3 = _tap(row, 3, scale_y, inside_h, low_scale_y, low_h)
    first = tl.program_id(2) * span
    last = tl.minimum(first + span, width)
    pick = tl.arange(0, 4 * COLUMNS)  # four of a window's columns for each of the image's
    y = row[:, None]
    top, _ = _tap(band * ROWS, 0, scale_y, inside_h, low_scale_y, low_h)
    line = top + tl.arange(0, LINES)
    if SOME:
        last = tl.where(tl.load(wanted + mask) != 0, last, first)  # else no column is done
    if MEASURE and SKIP and not (MASKS or PACK):  # noqa: SIM102 - one is known when it is compiled, one when it runs
        if last > first:
            _, most = _extremes(logits, line, low_h, tl.arange(0, LOW), low_w)
            last = tl.where(most > below, last, first)
    if MEASURE:
        area = tl.zeros((ROWS, COLUMNS), tl.int32)
        within = tl.zeros((ROWS, COLUMNS), tl.int32)
        around = tl.zeros((ROWS, COLUMNS), tl.int32)
        leftmost = tl.full((ROWS, COLUMNS), 2147483647, tl.int32)
        rightmost = tl.full((ROWS, COLUMNS), -1, tl.int32)
    for start in range(first, last, COLUMNS):
        x = start + tl.arange(0, COLUMNS)[None, :]
        real = (y < height) & (x < last)
        begin, _ = _tap(
            start + 0 * band, 0, scale_x, inside_w, low_scale_x, low_w
        )  # a number to Triton too
        column = begin + tl.arange(0, WINDOW)
        least, most = below, above
        if SKIP:
            least, most = _extremes(logits, line, low_h, column, low_w)
        # Between logits lie no others: only where these are on both sides of a threshold, each
        # pixel is looked at.
        value = tl.zeros((ROWS, COLUMNS), tl.float32) + least
        if (most > below) & ((least < above) | (most > LARGE)):
            window = _row(logits, row_0, share_0, low_w, column) + _row(
                logits, row_1, share_1, low_w, column
            )
            window += _row(logits, row_2, share_2, low_w, column) + _row(
                logits, row_3, share_3, low_w, column
            )
            taken, share = _tap(
                start + pick % COLUMNS, pick // COLUMNS, scale_x, inside_w, low_scale_x, low_w
            )
            taken = tl.minimum(
                taken - begin, WINDOW - 1
            )  # beyond the last column it may lie outside
            taken = tl.broadcast_to(taken[None, :], (ROWS, 4 * COLUMNS))
            blended = tl.gather(window, taken, 1) * share[None, :]
            value = tl.sum(tl.reshape(blended, (ROWS, 4, COLUMNS)), 1)
        is_set = real & (value > threshold)
        if MASKS:
            place = masks + mask * height * width + (y * width + x)
            tl.store(place, is_set.to(tl.uint8), mask=real)
        if PACK:
            word = tl.sum(is_set.to(tl.int32) << bit[:, None], axis=0)
            own = start + tl.arange(0, COLUMNS)
            place = packed + mask * width * tl.num_programs(1) + (own * tl.num_programs(1) + band)
            tl.store(place, word, mask=own < last)
        if MEASURE:  # noqa: SIM102 - likewise
            if most > below:
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
        keep_dtype = tl.sum(
            tl.sum(within, axis=1), axis=0
        )  # or the wider, where the offset is negative
        if wide > 0:
            tl.atomic_add(own + 2, wide)
        if keep_dtype > 0:
            tl.atomic_add(own + 1, keep_dtype)
        if total > 0:
            tl.atomic_add(own, total)
            tl.atomic_min(own + 3, tl.min(tl.min(leftmost, axis=1), axis=0))
            tl.atomic_min(own + 4, tl.min(tl.where(rows > 0, row, 2147483647), axis=0))
            tl.atomic_max(own + 5, tl.max(tl.max(rightmost, axis=1), axis=0))
            tl.atomic_max(own + 6, tl.max(tl.where(rows > 0, row, -1), axis=0))


def launch(
    low_res: Tensor,
    frame: ResizeGeometry,
    threshold: float,
    *,
    offset: float | None = None,
    masks: bool = False,
    pack: bool = False,
    columns: int = COLUMNS,
    warps: int = 8,
    wanted: Tensor | None = None,
) -> Upscaled:
    """One launch for all of N masks; nothing waits for the GPU.

    low_res    (N, h, w) float32, float16 or bfloat16; the image must have fewer than 2**31 pixels
    threshold  a pixel is set if its logit is above it; NaN is not
    offset     measure, with counts at the threshold plus and minus this
    masks, pack  give the masks, as bool, as bits
    columns    of the image at a time
    wanted     (N,) bool: of other masks all measures are 0, and what is given of them is undefined;
               None: all are
    """
    count, low_h, low_w = low_res.shape
    (inside_h, inside_w), (height, width) = frame.input_size, frame.original_size
    low_res, device = low_res.contiguous(), low_res.device
    made = torch.empty((count, height, width), dtype=torch.bool, device=device) if masks else None
    bits = (
        torch.empty((count, width, words(height)), dtype=torch.int32, device=device)
        if pack
        else None
    )
    counts = (
        torch.zeros((count, 7), dtype=torch.int32, device=device) if offset is not None else None
    )
    if counts is not None:
        counts[:, 3:5] = 2**31 - 1
        counts[:, 5:] = -1
    bands = words(height)
    pieces = min(triton.cdiv(width, columns), triton.cdiv(PROGRAMS, max(1, count * bands)))
    span = triton.cdiv(triton.cdiv(width, pieces), columns) * columns
    scale_x, low_scale_x = _scale(inside_w, width), _scale(low_w, frame.side)
    scale_y, low_scale_y = _scale(inside_h, height), _scale(low_h, frame.side)
    lines, low = _window(BITS, scale_y * low_scale_y, low_h), triton.next_power_of_2(low_w)
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
            low_scale_y,
            low_scale_x,
            scale_y,
            scale_x,
            threshold,
            threshold + (offset or 0.0),
            threshold - (offset or 0.0),
            _aside(threshold - abs(offset or 0.0), -1),
            _aside(threshold + abs(offset or 0.0), 1),
            MASKS=masks,
            PACK=pack,
            MEASURE=offset is not None,
            SOME=wanted is not None,
            ROWS=BITS,
            COLUMNS=columns,
            WINDOW=_window(columns, scale_x * low_scale_x, low_w),
            LINES=lines,
            LOW=low,
            LARGE=LARGE,
            SKIP=lines * low <= SEEN,
            num_warps=warps,
        )
    if counts is not None:
        counts[:, 3:].masked_fill_(counts[:, :1] == 0, 0)  # an empty mask's box
    return Upscaled(None if counts is None else Measures(counts), made, bits)


def _scale(source: int, target: int) -> float:
    """As PyTorch has it: divided in float32."""
    return float(np.float32(source) / np.float32(target))


def _aside(level: float, side: int) -> float:
    """So far beyond a threshold that a blend of logits there is beyond it too, whatever its
    rounding.
    """
    return level + side * ROUNDING * (1 + abs(level))


def _window(columns: int, step: float, low: int) -> int:
    """How many logits of a row neighbouring columns take, each `step` logits from the last: at
    most, rounded up.
    """
    # One for each of: where the first lies between two, and the two steps to the pixel and to the
    # logit beside.
    return 1 << (min(low, math.ceil((columns - 1) * step) + 4) - 1).bit_length()
