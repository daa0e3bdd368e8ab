"""Fp8Linear: float8 (e4m3) weights and activations on the tensor cores of a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.errors import UnsupportedRecipeError
from samfast.linear.quantized_linear import QuantizedLinear


class Fp8Linear(QuantizedLinear):
    """Rowwise float8_e4m3fn by `torch._scaled_mm`: a scale a row of the input, a scale an output
    channel.

    weight  (out_features, in_features) float8_e4m3fn

    Sums are kept as the tensor cores keep them ("fast accumulation"); the product comes out as
    bfloat16 and is then converted if another dtype is wanted.
    `samfast.linear.dequantized.reference` says on any device what it computes.
    """

    kind = "fp8"
    format = torch.float8_e4m3fn
    weight: Tensor

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__(weight, weight_scale, bias, dtype)
        self.register_buffer("weight", weight.detach().contiguous())

    def matmul(self, q: Tensor, scale: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        if not q.is_cuda:
            raise UnsupportedRecipeError(
                "an fp8 layer on a CPU: its product needs an NVIDIA GPU of compute capability 8.9 "
                "or more; take "
                "quantize='int8', or samfast.linear.dequantized for its numbers"
            )
        product = torch._scaled_mm(
            q,
            self.weight.t(),
            scale_a=scale.unsqueeze(-1),
            scale_b=self.weight_scale.unsqueeze(0),
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return product.to(out_dtype or self.dtype)
