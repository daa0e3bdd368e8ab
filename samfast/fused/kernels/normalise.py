"""Bytes as Pillow has them to normalised planes: subtract, divide, transpose and pad in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.types import PIXEL_MEAN, PIXEL_STD


@triton.jit
def _normalise(pixels, sizes, out, side, MEAN: tl.constexpr, STD: tl.constexpr, BLOCK: tl.constexpr):
    """A part of one line of one image, its three colours."""
    line = tl.program_id(0).to(tl.int64)
    image, y = line // side, line % side
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (y < tl.load(sizes + image * 2)) & (x < tl.load(sizes + image * 2 + 1))
    for colour in tl.static_range(3):
        byte = tl.load(pixels + (line * side + x) * 3 + colour, mask=inside, other=0)
        # Triton's `/` is PTX's div.full, which is off by up to 2 ulp; div_rn is div.rn, rounded as IEEE 754 says.
        value = tl.div_rn(byte.to(tl.float32) - MEAN[colour], STD[colour])
        place = out + ((image * 3 + colour) * side + y) * side + x
        tl.store(place, tl.where(inside, value, 0.0), mask=x < side)


def launch(pixels: Tensor, sizes: Tensor) -> Tensor:
    """As `samfast.fused.reference.normalise`; the pixels contiguous."""
    batch, side, _, _ = pixels.shape
    out = pixels.new_empty(batch, 3, side, side, dtype=torch.float32)
    block = min(1024, triton.next_power_of_2(side))
    _normalise[(batch * side, triton.cdiv(side, block))](
        pixels, sizes, out, side, MEAN=PIXEL_MEAN, STD=PIXEL_STD, BLOCK=block, num_warps=4
    )
    return out
