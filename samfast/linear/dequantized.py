"""The reference of the quantized linear layers: a float32 product of the rounded numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.linear.quantization import quantize_rows


def reference(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K) quantized row by row, times the dequantized weight -> (..., N) float32.

    weight        (N, K) int8 or float8_e4m3fn; x is quantized to its dtype
    weight_scale  (N,) float32
    bias          (N,) or None
    """
    q, scale = quantize_rows(x, weight.dtype)
    rows = q.float() * scale.unsqueeze(-1)
    return F.linear(rows, dequantize(weight, weight_scale), None if bias is None else bias.float())


def dequantize(weight: Tensor, weight_scale: Tensor) -> Tensor:
    """An 8-bit weight (N, K) and its scales (N,) -> (N, K) float32."""
    return weight.to(torch.float32) * weight_scale.unsqueeze(-1)
