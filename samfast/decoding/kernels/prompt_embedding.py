"""Points and boxes to tokens, and the positions of an image's places, each in one pass
(`PromptEncoder`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.types import Size

ROWS = 4
"""Tokens or places of a program: few, so that a click's are not one after the other's."""


@triton.jit
def _phase(x, y, matrix, feature, real, F):
    """(len(x), len(feature)): the angle of each Fourier feature at places x and y in 0 to 1."""
    over = tl.load(matrix + feature, mask=real, other=0.0).to(tl.float32)
    down = tl.load(matrix + F + feature, mask=real, other=0.0).to(tl.float32)
    return 6.283185307179586 * (
        (2.0 * x - 1.0)[:, None] * over[None, :] + (2.0 * y - 1.0)[:, None] * down[None, :]
    )


@triton.jit
def _added(rows, first, feature, real, chosen):
    """(len(chosen), len(feature)): that row's features where chosen, zeros elsewhere."""
    return tl.where(
        chosen[:, None],
        tl.load(rows + first + feature, mask=real, other=0.0).to(tl.float32)[None, :],
        0.0,
    )


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
    nothing,
    out,
    count,  # tokens of all objects
    points,  # of an object
    tokens,  # of an object
    width,  # of the model's input
    height,
    F,
    HAS_BOXES: tl.constexpr,
    BLOCK: tl.constexpr,  # a power of two, at least F
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    kept = row < count
    item, token = (row // tokens).to(tl.int64), row % tokens
    clicked = kept & (token < points)
    click = item * points + token
    x = tl.load(coords + 2 * click, mask=clicked, other=0.0)
    y = tl.load(coords + 2 * click + 1, mask=clicked, other=0.0)
    kind = tl.load(labels + click, mask=clicked, other=-1).to(tl.int32)
    if HAS_BOXES:
        corner = kept & (token >= points)
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
        value = value.to(out.dtype.element_ty).to(
            tl.float32
        )  # rounded, then added to, as PyTorch does
        value += _added(background, first, feature, real, kind == 0)
        value += _added(foreground, first, feature, real, kind == 1)
        value += _added(corner_1, first, feature, real, kind == 2)
        value += _added(corner_2, first, feature, real, kind == 3)
        value = tl.where(
            kind[:, None] == -1, _added(nothing, first, feature, real, kind == -1), value
        )
        place = out + row[:, None] * (2 * F) + first + feature[None, :]
        tl.store(place, value.to(out.dtype.element_ty), mask=kept[:, None] & real[None, :])


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
    kinds: list[Tensor],
    size: Size,
) -> Tensor:
    """(P, T, C), as `PromptEncoder` embeds them; kinds: what each is added, and the last what no
    point is.
    """
    count = len(coords) if coords is not None else len(boxes) if boxes is not None else 0
    points = 0 if coords is None else coords.shape[1]
    each = points + (2 if boxes is not None else 1 if coords is not None else 0)
    half = matrix.shape[1]
    out = kinds[0].new_empty(count, each, 2 * half)
    if out.numel():
        none = matrix  # is not read
        _tokens[(triton.cdiv(count * each, ROWS),)](
            none if coords is None else coords.contiguous(),
            none if labels is None else labels.contiguous(),
            none if boxes is None else boxes.contiguous(),
            matrix,
            *kinds,
            out,
            count * each,
            points,
            each,
            float(size[1]),
            float(size[0]),
            half,
            HAS_BOXES=boxes is not None,
            BLOCK=triton.next_power_of_2(half),
            ROWS=ROWS,
        )
    return out


def places(matrix: Tensor, size: Size, dtype: torch.dtype) -> Tensor:
    """(h * w, C): as `PromptEncoder.get_dense_pe`, a place a row."""
    height, width = size
    half = matrix.shape[1]
    out = torch.empty(height * width, 2 * half, dtype=dtype, device=matrix.device)
    _places[(triton.cdiv(height * width, ROWS),)](
        matrix, out, height, width, half, BLOCK=triton.next_power_of_2(half), ROWS=ROWS
    )
    return out
