"""Image rows to mask logits: transposed convolutions, norm, GELUs and the hypernetworks' product.

A transposed convolution of stride 2 and side 2 makes four pixels of one, without overlap: it is
one matrix product per corner. So the 16 pixels of a row are computed in registers, and only their
logits are written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.device.kernels.arithmetic import dot_precision
from samfast.device.kernels.gelu import gelu
from samfast.device.kernels.tiles import load_part, load_vector


@triton.jit
def _upscale(
    images,
    source_of,
    wide,
    wide_bias,
    norm_weight,
    norm_bias,
    narrow,
    narrow_bias,
    hyper_in,
    wanted,
    out,
    height,
    width,
    eps,
    C: tl.constexpr,
    PART: tl.constexpr,  # half of C, or C
    C_1: tl.constexpr,  # channels after the first convolution
    C_2: tl.constexpr,  # after the second
    BLOCK_1: tl.constexpr,  # powers of two, at least C_1 and C_2
    BLOCK_2: tl.constexpr,
    MASKS: tl.constexpr,
    COLUMNS: tl.constexpr,  # a power of two from 16, at least 4 * MASKS
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,  # the places are whole blocks
    SOME: tl.constexpr,  # whether `wanted` is read
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    places = height * width
    base = images + tl.load(source_of + item).to(tl.int64) * places * C
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < places
    layer = tl.arange(0, COLUMNS)
    mask, corner_2 = layer // 4, layer % 4
    top = 4 * (place // width)[:, None] + (corner_2 // 2)[None, :]
    left = 4 * (place % width)[:, None] + (corner_2 % 2)[None, :]
    pixel = (item * MASKS + mask)[None, :] * (16 * places) + top * (4 * width) + left
    stored = inside[:, None] & (mask < MASKS)[None, :]
    if SOME:  # noqa: SIM102 - a constant and a value
        if tl.load(wanted + item) == 0:
            for corner in range(4):
                here = pixel + 2 * (corner // 2) * (4 * width) + 2 * (corner % 2)
                tl.store(out + here, tl.zeros((BLOCK, COLUMNS), out.dtype.element_ty), mask=stored)
            return
    # In parts, so that only part of the weights of a convolution is held at a time.
    channel = tl.arange(0, PART)
    x_1 = load_part(base, place, inside, channel, C, EVEN)
    if PART < C:
        x_2 = load_part(base, place, inside, PART + channel, C, EVEN)
    first = tl.arange(0, BLOCK_1)
    real = first < C_1
    # All four corners of the second convolution side by side.
    column = tl.arange(0, 4 * BLOCK_2)
    second = column % BLOCK_2
    real_2 = second < C_2
    w_2 = tl.load(
        narrow + first[:, None] * (4 * C_2) + (column // BLOCK_2 * C_2 + second)[None, :],
        mask=real[:, None] & real_2[None, :],
        other=0.0,
    )
    # All masks' networks as one matrix: the channels of a corner meet the columns of that corner.
    network = tl.load(
        hyper_in + ((item * MASKS + mask) * C_2)[None, :] + second[:, None],
        mask=real_2[:, None]
        & (mask < MASKS)[None, :]
        & ((column // BLOCK_2)[:, None] == corner_2[None, :]),
        other=0.0,
    )
    for corner in range(4):
        here = wide + (corner * C + channel)[:, None] * C_1 + first[None, :]
        w_1 = tl.load(here, mask=real[None, :], other=0.0)
        y = tl.dot(x_1, w_1, input_precision=PRECISION)
        if PART < C:
            w_1 = tl.load(here + PART * C_1, mask=real[None, :], other=0.0)
            y = tl.dot(x_2, w_1, y, input_precision=PRECISION)
        # Vectors are read again for each corner: registers are scarcer than time.
        y += load_vector(wide_bias, first, real)
        y = tl.where(real[None, :], y - (tl.sum(y, 1) / C_1)[:, None], 0.0)
        share = 1.0 / tl.sqrt(tl.sum(y * y, 1) / C_1 + eps)
        y = y * share[:, None] * load_vector(norm_weight, first, real)
        y = y + load_vector(norm_bias, first, real)
        z = tl.dot(gelu(y, EXACT).to(w_2.dtype), w_2, input_precision=PRECISION)
        z = gelu(z + load_vector(narrow_bias, second, real_2), EXACT)
        logits = tl.dot(z.to(w_2.dtype), network, input_precision=PRECISION)
        here = pixel + 2 * (corner // 2) * (4 * width) + 2 * (corner % 2)
        tl.store(out + here, logits.to(out.dtype.element_ty), mask=stored)


def launch(
    images: Tensor,
    source_of: Tensor,
    height: int,
    width: int,
    wide: Tensor,
    wide_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    narrow: Tensor,
    narrow_bias: Tensor,
    hyper_in: Tensor,
    wanted: Tensor | None,
    *,
    block: int | None = None,
    warps: int = 4,
    stages: int = 1,
) -> Tensor:
    """As `samfast.decoding.decoder_operations.upscaling`.

    block  rows of an image per program; None: as fits an H100, where three programs in 16 bits
           share a multiprocessor
    """
    count, masks, c_2 = hyper_in.shape
    channels, c_1 = wide.shape[1:]
    out = images.new_empty(count, masks, 4 * height, 4 * width)
    if out.numel() == 0:
        return out
    exact = images.dtype == torch.float32
    block = block or (16 if exact else 64)
    layers = (wide, wide_bias, norm_weight, norm_bias, narrow, narrow_bias)
    _upscale[(count, triton.cdiv(height * width, block))](
        images,
        source_of,
        *layers,
        hyper_in,
        hyper_in if wanted is None else wanted.contiguous().view(torch.uint8),
        out,
        height,
        width,
        eps,
        C=channels,
        PART=channels // 2 if channels >= 32 else channels,  # a dot takes at least 16
        C_1=c_1,
        C_2=c_2,
        BLOCK_1=max(16, triton.next_power_of_2(c_1)),
        BLOCK_2=max(4, triton.next_power_of_2(c_2)),
        MASKS=masks,
        COLUMNS=max(16, triton.next_power_of_2(4 * masks)),
        BLOCK=block,
        SOME=wanted is not None,
        EVEN=height * width % block == 0,
        EXACT=exact,
        PRECISION=dot_precision(images.dtype),
        num_warps=warps,
        num_stages=stages,
    )
    return out
