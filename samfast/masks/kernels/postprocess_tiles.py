"""Low-resolution logits to masks, packed masks and measures, without float masks in memory.

A pixel of the image blends four of the model's square, each of which blends four logits. Both
resizes are separable, so a column blends the logits of four rows, and then four columns of that,
which neighbours share: a program blends the rows of a window of logits once, and each pixel gathers
its four columns of it. Windows entirely above or below the thresholds, nearly all but those at a
mask's edge, are classified from their minimum and maximum, without interpolation. The products are
PyTorch's, but summed in another order: a logit within rounding of the threshold may fall to the
other side.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.masks.bit_masks import BITS, words
from samfast.masks.kernels.interpolation import beyond, scale
from samfast.masks.measures import Postprocessed
from samfast.masks.resize_geometry import ResizeGeometry

COLUMNS = 64
"""Columns of the image a step; chosen so that one thread holds the four source columns of a
pixel."""
WARPS = 8
LARGE = 1e30
"""Logits beyond this are interpolated, since a weight of zero times infinity is NaN."""
MAX_SCANNED = 16384
"""Logits of a window whose extremes are computed first; images below 150 pixels have larger
windows."""
MIN_PROGRAMS = 1024
"""Programs that fill a large GPU several times over; fewer masks are cut into more pieces."""


@triton.jit
def _between(target, scale, size):
    """The two source pixels, in a line of `size`, of a pixel of the resized line; their weights."""
    place = tl.maximum((target.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    # Pixels beyond the image still get a readable source.
    first = tl.minimum(place.to(tl.int32), size - 1)
    share = tl.minimum(place - first.to(tl.float32), 1.0)
    return first, tl.minimum(first + 1, size - 1), 1.0 - share, share


@triton.jit
def _tap(target, tap, scale, inside, low_scale, low):
    """Index and weight of source logit number `tap`, of four in a line of `low`, of a pixel."""
    first, second, left, right = _between(target, scale, inside)
    before, after, near, far = _between(tl.where(tap < 2, first, second), low_scale, low)
    odd = tap % 2 == 1
    return tl.where(odd, after, before), tl.where(tap < 2, left, right) * tl.where(odd, far, near)


@triton.jit
def _row(logits, row, weight, low_w, column):
    """(ROWS, WINDOW): for each row of the image the logits of one source row, weighted."""
    # A mask instead of a minimum shows the compiler that columns follow each other.
    inside = (column < low_w)[None, :]
    return weight[:, None] * tl.load(
        logits + row[:, None] * low_w + column[None, :], mask=inside, other=0.0
    ).to(tl.float32)


@triton.jit
def _extremes(logits, line, low_h, column, low_w):
    """Minimum and maximum of a window of logits; NaN counts as the lowest."""
    inside = (line < low_h)[:, None] & (column < low_w)[None, :]
    value = tl.load(logits + line[:, None] * low_w + column[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    value = tl.where(value == value, value, float("-inf"))
    lowest = tl.min(tl.min(tl.where(inside, value, float("inf")), axis=1), axis=0)
    return lowest, tl.max(tl.max(tl.where(inside, value, float("-inf")), axis=1), axis=0)


# Few compilations: the constants change in steps with the scale of an image.
@triton.jit(do_not_specialize=["inside_h", "inside_w", "height", "width", "span"])
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
    below,  # blends of logits below this are below all thresholds, rounding included
    above,
    MASKS: tl.constexpr,
    PACK: tl.constexpr,
    MEASURE: tl.constexpr,
    HAS_WANTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr,  # most source logits of COLUMNS columns in a row, a power of two
    LINES: tl.constexpr,  # most source logits of ROWS rows in a column, a power of two
    LOW: tl.constexpr,  # logits of a whole row, rounded up to a power of two
    LARGE: tl.constexpr,
    SKIP: tl.constexpr,  # whether windows are small enough to compute their extremes first
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
    if HAS_WANTED:
        last = tl.where(tl.load(wanted + mask) != 0, last, first)  # unwanted: no column is done
    if MEASURE and SKIP and not (MASKS or PACK):  # noqa: SIM102 - a constant, then a value
        if last > first:
            _, highest = _extremes(logits, line, low_h, tl.arange(0, LOW), low_w)
            last = tl.where(highest > below, last, first)
    if MEASURE:
        area = tl.zeros((ROWS, COLUMNS), tl.int32)
        inner_area = tl.zeros((ROWS, COLUMNS), tl.int32)
        outer_area = tl.zeros((ROWS, COLUMNS), tl.int32)
        leftmost = tl.full((ROWS, COLUMNS), 2147483647, tl.int32)
        rightmost = tl.full((ROWS, COLUMNS), -1, tl.int32)
    for start in range(first, last, COLUMNS):
        x = start + tl.arange(0, COLUMNS)[None, :]
        real = (y < height) & (x < last)
        # The sum makes the interpreter's int a Triton number.
        begin, _ = _tap(start + 0 * band, 0, scale_x, inside_w, low_scale_x, low_w)
        column = begin + tl.arange(0, WINDOW)
        lowest, highest = below, above
        if SKIP:
            lowest, highest = _extremes(logits, line, low_h, column, low_w)
        # Blends lie between the extremes: only windows that straddle a threshold are interpolated.
        value = tl.zeros((ROWS, COLUMNS), tl.float32) + lowest
        if (highest > below) & ((lowest < above) | (highest > LARGE)):
            window = _row(logits, row_0, share_0, low_w, column) + _row(
                logits, row_1, share_1, low_w, column
            )
            window += _row(logits, row_2, share_2, low_w, column) + _row(
                logits, row_3, share_3, low_w, column
            )
            source, share = _tap(
                start + pick % COLUMNS, pick // COLUMNS, scale_x, inside_w, low_scale_x, low_w
            )
            # Columns beyond the last may lie outside the window.
            source = tl.minimum(source - begin, WINDOW - 1)
            source = tl.broadcast_to(source[None, :], (ROWS, 4 * COLUMNS))
            blended = tl.gather(window, source, 1) * share[None, :]
            value = tl.sum(tl.reshape(blended, (ROWS, 4, COLUMNS)), 1)
        is_set = real & (value > threshold)
        if MASKS:
            place = masks + mask * height * width + (y * width + x)
            tl.store(place, is_set.to(tl.uint8), mask=real)
        if PACK:
            word = tl.sum(is_set.to(tl.int32) << bit[:, None], axis=0)
            word_x = start + tl.arange(0, COLUMNS)
            bands = tl.num_programs(1)
            place = packed + mask * width * bands + (word_x * bands + band)
            tl.store(place, word, mask=word_x < last)
        if MEASURE:  # noqa: SIM102 - a constant, then a value
            if highest > below:
                area += is_set.to(tl.int32)
                inner_area += (real & (value > inner)).to(tl.int32)
                outer_area += (real & (value > outer)).to(tl.int32)
                leftmost = tl.minimum(leftmost, tl.where(is_set, x, 2147483647))
                rightmost = tl.maximum(rightmost, tl.where(is_set, x, -1))
    if MEASURE:
        table = measures + mask * 7
        rows = tl.sum(area, axis=1)
        total = tl.sum(rows, axis=0)
        outer_total = tl.sum(tl.sum(outer_area, axis=1), axis=0)
        inner_total = tl.sum(tl.sum(inner_area, axis=1), axis=0)
        if outer_total > 0:
            tl.atomic_add(table + 2, outer_total)
        if inner_total > 0:  # the larger of both where the offset is negative
            tl.atomic_add(table + 1, inner_total)
        if total > 0:
            tl.atomic_add(table, total)
            tl.atomic_min(table + 3, tl.min(tl.min(leftmost, axis=1), axis=0))
            tl.atomic_min(table + 4, tl.min(tl.where(rows > 0, row, 2147483647), axis=0))
            tl.atomic_max(table + 5, tl.max(tl.max(rightmost, axis=1), axis=0))
            tl.atomic_max(table + 6, tl.max(tl.where(rows > 0, row, -1), axis=0))


def launch(
    low_res: Tensor,
    geometry: ResizeGeometry,
    threshold: float,
    *,
    offset: float | None = None,
    masks: bool = False,
    pack: bool = False,
    wanted: Tensor | None = None,
) -> Postprocessed:
    """See `samfast.masks.measures.Postprocess`; one launch for all masks, which waits for nothing.

    The image must have fewer than 2**31 pixels.
    """
    low_res = low_res.flatten(0, -3)
    count, low_h, low_w = low_res.shape
    (inside_h, inside_w), (height, width) = geometry.input_size, geometry.original_size
    low_res, bands = low_res.contiguous(), words(height)
    out = low_res.new_empty((count, height, width), dtype=torch.bool) if masks else None
    packed = low_res.new_empty((count, width, bands), dtype=torch.int32) if pack else None
    table = None if offset is None else low_res.new_zeros((count, 7), dtype=torch.int32)
    if table is not None:
        table[:, 3:5] = 2**31 - 1
        table[:, 5:] = -1
    pieces = min(triton.cdiv(width, COLUMNS), triton.cdiv(MIN_PROGRAMS, max(1, count * bands)))
    span = triton.cdiv(triton.cdiv(width, pieces), COLUMNS) * COLUMNS
    scale_x, low_scale_x = scale(inside_w, width), scale(low_w, geometry.side)
    scale_y, low_scale_y = scale(inside_h, height), scale(low_h, geometry.side)
    lines, low = _window(BITS, scale_y * low_scale_y, low_h), triton.next_power_of_2(low_w)
    margin = offset or 0.0
    buffers = (
        low_res,
        low_res if out is None else out.view(torch.uint8),
        low_res if packed is None else packed,
        low_res if table is None else table,
        low_res if wanted is None else wanted.contiguous().view(torch.uint8),
    )
    sizes = low_h, low_w, inside_h, inside_w, height, width, span
    scales = low_scale_y, low_scale_x, scale_y, scale_x
    levels = threshold, threshold + margin, threshold - margin
    below = beyond(threshold - abs(margin), -1)
    above = beyond(threshold + abs(margin), 1)
    if count:
        _tiles[(count, bands, triton.cdiv(width, span))](
            *buffers,
            *sizes,
            *scales,
            *levels,
            below,
            above,
            MASKS=masks,
            PACK=pack,
            MEASURE=offset is not None,
            HAS_WANTED=wanted is not None,
            ROWS=BITS,
            COLUMNS=COLUMNS,
            WINDOW=_window(COLUMNS, scale_x * low_scale_x, low_w),
            LINES=lines,
            LOW=low,
            LARGE=LARGE,
            SKIP=lines * low <= MAX_SCANNED,
            num_warps=WARPS,
        )
    if table is not None:
        table[:, 3:].masked_fill_(table[:, :1] == 0, 0)  # an empty mask's box
    return Postprocessed(table, out, packed)


def _window(columns: int, step: float, low: int) -> int:
    """Most source logits of neighbouring columns that are `step` logits apart, a power of two."""
    # One more for the fraction of the first place, and one for the second neighbour of each resize.
    return 1 << (min(low, math.ceil((columns - 1) * step) + 4) - 1).bit_length()
