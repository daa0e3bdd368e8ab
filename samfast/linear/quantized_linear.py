"""QuantizedLinear: the base of the linear layers with 8-bit weights and activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from samfast.linear.quantization import quantize_rows, quantize_weight


class QuantizedLinear(nn.Module, ABC):
    """y = x W^T + b: the rows of x are quantized at each call, W was quantized once.

    kind            what its rows are quantized to: "int8" or "fp8"
    format          the same as a dtype
    dtype           of bias and output
    bias            (out_features,) or None
    weight_scale    (out_features,) float32
    pads_with_bias  the output of a row of zeros is exactly the bias
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
        """The layer with its weight quantized, on its device; bias and output keep its dtype."""
        weight, scale = quantize_weight(linear.weight.detach(), cls.format)
        return cls(weight, scale, linear.bias, linear.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in x's dtype."""
        rows = x.reshape(-1, self.in_features)
        q, scale = quantize_rows(rows, self.format)
        return self.matmul(q, scale, x.dtype).view(*x.shape[:-1], self.out_features)

    @abstractmethod
    def matmul(self, q: Tensor, scale: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """The same for quantized rows; each format multiplies in its way.

        q          (M, in_features) of `format`, contiguous
        scale      (M,) float32
        out_dtype  of the result; None: `dtype`
        returns    (M, out_features)
        """

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class DenseQuantizedLinear(QuantizedLinear):
    """A quantized layer that keeps its 8-bit weight (out_features, in_features) as it is."""

    weight: Tensor

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__(weight, weight_scale, bias, dtype)
        self.register_buffer("weight", weight.detach().contiguous())
