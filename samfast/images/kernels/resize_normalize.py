"""Bytes of images of any sizes to normalised planes of one size: resize, subtract, divide,
transpose and pad.

In two passes, for all images of a batch at once: the first gives bytes again, as Pillow's does, the
second planes.
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
    """Pixels x of a line of `width` pixels, one colour each; taps (count, then rows of 1 + count)
    are x's.
    """
    count = tl.load(taps)
    own = taps + 1 + x * (count + 1)
    first = tl.load(own, mask=inside, other=0)
    total = tl.full(x.shape, HALF, tl.int32)
    for tap in range(count):
        seen = inside & (first + tap < width)
        byte = tl.load(pixels + (first + tap) * 3 + colour, mask=seen, other=0)
        total += byte.to(tl.int32) * tl.load(own + 1 + tap, mask=inside, other=0)
    return tl.minimum(total >> SHIFT, 255)


@triton.jit
def _down(pixels, taps, y, place, stride, height, inside, HALF: tl.constexpr, SHIFT: tl.constexpr):
    """Bytes at `place` of line y, of lines of `stride` bytes; the taps are y's."""
    count = tl.load(taps)
    own = taps + 1 + y * (count + 1)
    first = tl.load(own)
    total = tl.full(place.shape, HALF, tl.int32)
    for tap in range(count):
        line = tl.minimum(first + tap, height - 1)  # what lies outside has the share 0
        byte = tl.load(pixels + line.to(tl.int64) * stride + place, mask=inside, other=0)
        total += byte.to(tl.int32) * tl.load(own + 1 + tap)
    return tl.minimum(total >> SHIFT, 255)


@triton.jit
def _image(table):
    """Where an image's bytes and those between the passes begin, its sizes, where its taps are, and
    the order.
    """
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
    """Some bytes of one line between the passes."""
    begin, middle, height, width, h, w, rows, columns, down = _image(table + tl.program_id(0) * 9)
    line = tl.program_id(1)
    place = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    if down != 0:
        if line < h:
            inside = place < width * 3
            value = _down(
                pixels + begin, taps + rows, line, place, width * 3, height, inside, HALF, SHIFT
            )
            tl.store(
                between + middle + line.to(tl.int64) * width * 3 + place,
                value.to(tl.uint8),
                mask=inside,
            )
    else:
        if line < height:
            inside = place < w * 3
            own = pixels + begin + line.to(tl.int64) * width * 3
            value = _across(own, taps + columns, place // 3, place % 3, width, inside, HALF, SHIFT)
            tl.store(
                between + middle + line.to(tl.int64) * w * 3 + place,
                value.to(tl.uint8),
                mask=inside,
            )


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
    """A part of one line of one image's planes."""
    image, y = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _, middle, height, width, h, w, rows, columns, down = _image(table + image * 9)
    x = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = (y < h) & (x < w)
    line = tl.minimum(y, h - 1)
    for colour in tl.static_range(3):
        if down != 0:
            own = between + middle + line.to(tl.int64) * width * 3
            byte = _across(own, taps + columns, x, colour, width, inside, HALF, SHIFT)
        else:
            byte = _down(
                between + middle,
                taps + rows,
                line,
                x * 3 + colour,
                w * 3,
                height,
                inside,
                HALF,
                SHIFT,
            )
        # Triton's `/` is PTX's div.full, which is off by up to 2 ulp; div_rn is div.rn, rounded as
        # IEEE 754 says.
        value = tl.div_rn(byte.to(tl.float32) - MEAN[colour], STD[colour])
        plane = out + ((image * 3 + colour) * side + y) * side
        tl.store(plane + x, tl.where(inside, value, 0.0), mask=x < side)


def launch(
    pixels: Tensor, table: Tensor, taps: Tensor, most: NDArray[np.int64], out: Tensor, bits: int
) -> None:
    """Write `out`, (B, 3, side, side) float32, contiguous.

    pixels  uint8, (H, W, 3) of each image
    table   (B, 9) int64: where an image's bytes begin and those between the passes, H, W, h, w,
            where the taps of its rows and of its columns begin, and whether columns are first
    taps    int32: K, then 1 + K for each new pixel (`samfast.images.resampling.taps`), one table
            after another
    most    on the host: bytes between the passes, lines of those and bytes of a line of an image at
            most
    bits    of a share
    """
    count, side = len(table), out.shape[-1]
    room, lines, length = most.tolist()
    between = pixels.new_empty(room)
    half = 1 << (bits - 1)
    grid = (count, lines, triton.cdiv(length, BLOCK))
    _first_pass[grid](pixels, table, taps, between, HALF=half, SHIFT=bits, BLOCK=BLOCK, num_warps=4)
    block = min(BLOCK, triton.next_power_of_2(side))
    grid = (count, side, triton.cdiv(side, block))
    given = {"MEAN": PIXEL_MEAN, "STD": PIXEL_STD, "HALF": half, "SHIFT": bits, "BLOCK": block}
    _second_pass[grid](between, table, taps, out, side, **given, num_warps=4)
