"""What the kernels of `samfast.fused.kernels` compute, in plain torch; also what runs on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.linear.quantization import quantize_rows


def rows(
    x: Tensor,
    *,
    y: Tensor | None = None,
    shift: Tensor | None = None,
    norm: tuple[Tensor, Tensor, float] | None = None,
    gelu: bool = False,
    quantize: torch.dtype | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `samfast.encoding.kernels.row_passes.launch`: float32 inside, rounded where that
    stores.
    """
    value = x.float()
    if y is not None:
        value = value + y.float().repeat(x.shape[0] // y.shape[0], 1)
    if shift is not None:
        value = value + shift.float()
    new_x = x
    if y is not None:
        new_x = value.to(x.dtype)
        value = new_x.float()
    if norm is not None:
        weight, bias, eps = norm
        value = F.layer_norm(value, (x.shape[1],), weight.float(), bias.float(), eps)
    if gelu:
        value = F.gelu(value)
    if quantize is None:
        result = value.to(x.dtype) if out is None else out.copy_(value)
        return new_x, result, x.new_empty(0, dtype=torch.float32)
    return new_x, *quantize_rows(value, quantize)


def patches(pixels: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """(B, colours, S, S) pixels, contiguous -> (B * (S / side)**2, colours * side**2): a patch a
    row.
    """
    batch, colours, size, _ = pixels.shape
    grid = size // side
    split = pixels.to(dtype).view(batch, colours, grid, side, grid, side)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch * grid * grid, colours * side * side)
