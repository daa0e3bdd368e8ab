"""What a quantized linear layer computes, by a plain product of numbers that are rounded but not
8-bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.linear.quantization import quantize_rows


def reference(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K) quantized row by row, times the dequantized weight -> (..., N) float32, on any
    device.

    weight        (N, K) int8 or float8_e4m3fn; its dtype says what x is quantized to
    weight_scale  (N,) float32
    bias          (N,) or None
    """
    q, scale = quantize_rows(x, weight.dtype)
    rows = q.float() * scale.unsqueeze(-1)
    return F.linear(rows, dequantize(weight, weight_scale), None if bias is None else bias.float())


def dequantize(weight: Tensor, weight_scale: Tensor) -> Tensor:
    """(N, K) of an 8-bit format and (N,) scales -> (N, K) float32."""
    return weight.to(torch.float32) * weight_scale.unsqueeze(-1)
