"""Pixels to the rows that the patch embedding multiplies: cast and reordered in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _patches(pixels, out, grid, SIDE: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """One line of pixels: a slice of each patch of that row."""
    line = tl.program_id(0).to(tl.int64)  # (image, colour, patch row, line within the patch)
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    width = grid * SIDE
    value = tl.load(pixels + line * width + x, mask=x < width, other=0.0)
    within = line % SIDE
    row = line // SIDE % grid
    plane = line // (SIDE * grid)
    image, colour = plane // (SPAN // (SIDE * SIDE)), plane % (SPAN // (SIDE * SIDE))
    patch = (image * grid + row) * grid + x // SIDE
    place = out + patch * SPAN + (colour * SIDE + within) * SIDE + x % SIDE
    tl.store(place, value.to(out.dtype.element_ty), mask=x < width)


def launch(pixels: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """As `samfast.encoding.fused_operations.patches`."""
    batch, colours, height, _ = pixels.shape
    grid, span = height // side, colours * side * side
    out = pixels.new_empty(batch * grid * grid, span, dtype=dtype)
    block = min(1024, triton.next_power_of_2(height))
    _patches[(batch * colours * height, triton.cdiv(height, block))](
        pixels, out, grid, SIDE=side, SPAN=span, BLOCK=block, num_warps=4
    )
    return out
