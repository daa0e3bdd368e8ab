"""`PromptEncoder`'s tokens of points and boxes, and its dense positions, in one pass each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.types import Size

ROWS = 4
"""Tokens or places per program: few, so that the tokens of one click run in parallel."""


@triton.jit
def _phase(x, y, matrix, feature, real, F):
    """(len(x), len(feature)): the angle of each Fourier feature at x and y, from 0 to 1."""
    over = tl.load(matrix + feature, mask=real, other=0.0).to(tl.float32)
    down = tl.load(matrix + F + feature, mask=real, other=0.0).to(tl.float32)
    x, y = 2.0 * x - 1.0, 2.0 * y - 1.0
    return 6.283185307179586 * (x[:, None] * over[None, :] + y[:, None] * down[None, :])


@triton.jit
def _embedding(vector, first, feature, real, chosen):
    """(len(chosen), len(feature)): the embedding where chosen, zeros elsewhere."""
    value = tl.load(vector + first + feature, mask=real, other=0.0).to(tl.float32)
    return tl.where(chosen[:, None], value[None, :], 0.0)


@triton.jit
def _tokens(
    coords,
    labels,
    boxes,
    matrix,
    background,
    foreground,
    corner_1,
    corner_2,
    not_a_point,
    out,
    count,  # tokens of all objects
    points,  # per object
    tokens,  # per object
    width,  # of the model's input
    height,
    F,
    HAS_BOXES: tl.constexpr,
    BLOCK: tl.constexpr,  # a power of two, at least F
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    item, token = (row // tokens).to(tl.int64), row % tokens
    is_point = inside & (token < points)
    point = item * points + token
    x = tl.load(coords + 2 * point, mask=is_point, other=0.0)
    y = tl.load(coords + 2 * point + 1, mask=is_point, other=0.0)
    kind = tl.load(labels + point, mask=is_point, other=-1).to(tl.int32)
    if HAS_BOXES:
        corner = inside & (token >= points)
        at = 4 * item + 2 * (token - points)
        x = tl.where(corner, tl.load(boxes + at, mask=corner, other=0.0), x)
        y = tl.where(corner, tl.load(boxes + at + 1, mask=corner, other=0.0), y)
        kind = tl.where(corner, 2 + token - points, kind)
    feature = tl.arange(0, BLOCK)
    real = feature < F
    angle = _phase((x + 0.5) / width, (y + 0.5) / height, matrix, feature, real, F)
    for half in tl.static_range(2):
        first = half * F
        value = tl.sin(angle) if half == 0 else tl.cos(angle)
        # Rounded before the addition, as PyTorch does.
        value = value.to(out.dtype.element_ty).to(tl.float32)
        value += _embedding(background, first, feature, real, kind == 0)
        value += _embedding(foreground, first, feature, real, kind == 1)
        value += _embedding(corner_1, first, feature, real, kind == 2)
        value += _embedding(corner_2, first, feature, real, kind == 3)
        replaced = _embedding(not_a_point, first, feature, real, kind == -1)
        value = tl.where(kind[:, None] == -1, replaced, value)
        place = out + row[:, None] * (2 * F) + first + feature[None, :]
        tl.store(place, value.to(out.dtype.element_ty), mask=inside[:, None] & real[None, :])


@triton.jit
def _places(matrix, out, height, width, F, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, BLOCK)
    real = feature < F
    x = ((row % width).to(tl.float32) + 0.5) / width
    y = ((row // width).to(tl.float32) + 0.5) / height
    angle = _phase(x, y, matrix, feature, real, F)
    place = out + row[:, None] * (2 * F) + feature[None, :]
    mask = (row < height * width)[:, None] & real[None, :]
    tl.store(place, tl.sin(angle).to(out.dtype.element_ty), mask=mask)
    tl.store(place + F, tl.cos(angle).to(out.dtype.element_ty), mask=mask)


def tokens(
    coords: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    matrix: Tensor,
    embeddings: list[Tensor],
    size: Size,
) -> Tensor:
    """(P, T, C), as `PromptEncoder` embeds points and boxes.

    matrix      (2, C / 2): the Gaussian matrix of the positional encoding
    embeddings  of background, foreground and two corners, and what replaces a point that is none
    size        height and width of the model's input
    """
    count = len(coords) if coords is not None else len(boxes) if boxes is not None else 0
    points = 0 if coords is None else coords.shape[1]
    length = points + (2 if boxes is not None else 1 if coords is not None else 0)
    half = matrix.shape[1]
    out = embeddings[0].new_empty(count, length, 2 * half)
    if out.numel():
        # A tensor that is not given is not read; the matrix stands in for it.
        prompts = [matrix if x is None else x.contiguous() for x in (coords, labels, boxes)]
        _tokens[(triton.cdiv(count * length, ROWS),)](
            *prompts,
            matrix,
            *embeddings,
            out,
            count * length,
            points,
            length,
            float(size[1]),
            float(size[0]),
            half,
            HAS_BOXES=boxes is not None,
            BLOCK=triton.next_power_of_2(half),
            ROWS=ROWS,
        )
    return out


def places(matrix: Tensor, size: Size, dtype: torch.dtype) -> Tensor:
    """(h * w, C), as `PromptEncoder.get_dense_pe`, a row per place."""
    height, width = size
    half = matrix.shape[1]
    out = torch.empty(height * width, 2 * half, dtype=dtype, device=matrix.device)
    _places[(triton.cdiv(height * width, ROWS),)](
        matrix, out, height, width, half, BLOCK=triton.next_power_of_2(half), ROWS=ROWS
    )
    return out
