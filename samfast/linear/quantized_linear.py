"""QuantizedLinear: what the linear layers with 8-bit weights and activations have in common."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from samfast.linear.quantization import quantize_rows, quantize_weight


class QuantizedLinear(nn.Module):
    """y = x W^T + b, where x is quantized row by row when it comes and W was quantized once.

    kind               what it wants its rows quantized to: "int8" or "fp8"
    format             the same as a dtype
    in_features, out_features
    dtype              of bias and output
    bias               (out_features,) or None
    weight_scale       (out_features,) float32, a scale an output channel

    A row of zeros is quantized to zeros and answered with exactly the bias (`pads_with_bias`).
    """

    kind: str
    format: torch.dtype
    pads_with_bias = True
    bias: Tensor | None
    weight_scale: Tensor

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        self.register_buffer("weight_scale", weight_scale.detach().float())
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """The layer with its weight quantized, on its device; its dtype is kept for bias and
        output.
        """
        weight, scale = quantize_weight(linear.weight.detach(), cls.format)
        return cls(weight, scale, linear.bias, linear.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), of x's dtype."""
        rows = x.reshape(-1, self.in_features)
        q, scale = quantize_rows(rows, self.format)
        return self.matmul(q, scale, x.dtype).view(*x.shape[:-1], self.out_features)

    def matmul(self, q: Tensor, scale: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """The same for rows that are quantized already.

        q          (M, in_features) of `format`, contiguous
        scale      (M,) float32
        out_dtype  of the answer; None: `dtype`
        returns    (M, out_features)
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
