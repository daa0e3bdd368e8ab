"""Images of any sizes to normalised planes of one size: resize, normalise, transpose and pad.

Two passes over all images of a batch: the first writes bytes, as Pillow does, the second planes.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from samfast.types import PIXEL_MEAN, PIXEL_STD

BLOCK = 512


@triton.jit
def _across(pixels, taps, x, colour, width, inside, HALF: tl.constexpr, SHIFT: tl.constexpr):
    """New pixels x of a line of `width` pixels, in one colour.

    taps  count, then for each new pixel its first old pixel and count weights
    """
    count = tl.load(taps)
    row = taps + 1 + x * (count + 1)
    first = tl.load(row, mask=inside, other=0)
    total = tl.full(x.shape, HALF, tl.int32)
    for tap in range(count):
        exists = inside & (first + tap < width)
        byte = tl.load(pixels + (first + tap) * 3 + colour, mask=exists, other=0)
        total += byte.to(tl.int32) * tl.load(row + 1 + tap, mask=inside, other=0)
    return tl.minimum(total >> SHIFT, 255)


@triton.jit
def _down(pixels, taps, y, place, stride, height, inside, HALF: tl.constexpr, SHIFT: tl.constexpr):
    """Bytes at `place` of the new line y, of lines of `stride` bytes; taps as in `_across`."""
    count = tl.load(taps)
    row = taps + 1 + y * (count + 1)
    first = tl.load(row)
    total = tl.full(place.shape, HALF, tl.int32)
    for tap in range(count):
        line = tl.minimum(first + tap, height - 1)  # lines beyond have the weight 0
        byte = tl.load(pixels + line.to(tl.int64) * stride + place, mask=inside, other=0)
        total += byte.to(tl.int32) * tl.load(row + 1 + tap)
    return tl.minimum(total >> SHIFT, 255)


@triton.jit
def _image(table):
    """The entries of an image's row of the table; see `launch`."""
    return (
        tl.load(table),
        tl.load(table + 1),
        tl.load(table + 2).to(tl.int32),
        tl.load(table + 3).to(tl.int32),
        tl.load(table + 4).to(tl.int32),
        tl.load(table + 5).to(tl.int32),
        tl.load(table + 6),
        tl.load(table + 7),
        tl.load(table + 8),
    )


@triton.jit
def _first_pass(
    pixels, table, taps, between, HALF: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    """One block of one line between the passes."""
    begin, middle, height, width, h, w, rows, columns, vertical_first = _image(
        table + tl.program_id(0) * 9
    )
    line = tl.program_id(1)
    place = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    if vertical_first != 0:
        if line < h:
            inside = place < width * 3
            value = _down(
                pixels + begin, taps + rows, line, place, width * 3, height, inside, HALF, SHIFT
            )
            target = between + middle + line.to(tl.int64) * width * 3 + place
            tl.store(target, value.to(tl.uint8), mask=inside)
    else:
        if line < height:
            inside = place < w * 3
            old = pixels + begin + line.to(tl.int64) * width * 3
            value = _across(old, taps + columns, place // 3, place % 3, width, inside, HALF, SHIFT)
            target = between + middle + line.to(tl.int64) * w * 3 + place
            tl.store(target, value.to(tl.uint8), mask=inside)


@triton.jit
def _second_pass(
    between,
    table,
    taps,
    out,
    side,
    MEAN: tl.constexpr,
    STD: tl.constexpr,
    HALF: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one line of an image's planes."""
    image, y = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _, middle, height, width, h, w, rows, columns, vertical_first = _image(table + image * 9)
    start = between + middle
    x = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = (y < h) & (x < w)
    line = tl.minimum(y, h - 1)
    for colour in tl.static_range(3):
        if vertical_first != 0:
            old = start + line.to(tl.int64) * width * 3
            byte = _across(old, taps + columns, x, colour, width, inside, HALF, SHIFT)
        else:
            place = x * 3 + colour
            byte = _down(start, taps + rows, line, place, w * 3, height, inside, HALF, SHIFT)
        # Triton's `/` is PTX's div.full, off by up to 2 ulp; div_rn rounds as IEEE 754 requires.
        value = tl.div_rn(byte.to(tl.float32) - MEAN[colour], STD[colour])
        plane = out + ((image * 3 + colour) * side + y) * side
        tl.store(plane + x, tl.where(inside, value, 0.0), mask=x < side)


def launch(
    pixels: Tensor, table: Tensor, taps: Tensor, limits: NDArray[np.int64], out: Tensor, bits: int
) -> None:
    """Write `out`, (B, 3, side, side) float32, contiguous.

    pixels  uint8, (H, W, 3) of each image, one after another
    table   (B, 9) int64: the offsets of an image's bytes in pixels and between the passes, H, W, h,
            w, the offsets of the taps of its rows and of its columns, and whether columns are first
    taps    int32: K, then (new, 1 + K) of `samfast.images.resampling.taps`, one after another
    limits  on the host: bytes between the passes; at most, their lines and bytes per line of an
            image
    bits    of a weight
    """
    count, side = len(table), out.shape[-1]
    size, lines, length = limits.tolist()
    between = pixels.new_empty(size)
    half = 1 << (bits - 1)
    grid = (count, lines, triton.cdiv(length, BLOCK))
    _first_pass[grid](pixels, table, taps, between, HALF=half, SHIFT=bits, BLOCK=BLOCK, num_warps=4)
    block = min(BLOCK, triton.next_power_of_2(side))
    grid = (count, side, triton.cdiv(side, block))
    constants = {"MEAN": PIXEL_MEAN, "STD": PIXEL_STD, "HALF": half, "SHIFT": bits, "BLOCK": block}
    _second_pass[grid](between, table, taps, out, side, **constants, num_warps=4)
