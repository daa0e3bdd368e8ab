"""Fp8Linear: float8 (e4m3) weights and activations on the tensor cores of a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.errors import UnsupportedRecipeError
from samfast.linear.quantized_linear import DenseQuantizedLinear


class Fp8Linear(DenseQuantizedLinear):
    """Rowwise float8 by `torch._scaled_mm`: a scale per row of the input and per output channel.

    weight  (out_features, in_features) float8_e4m3fn

    Sums are kept as the tensor cores keep them ("fast accumulation"). The product is bfloat16, then
    converted to the output's dtype.
    """

    kind = "fp8"
    format = torch.float8_e4m3fn

    def matmul(self, q: Tensor, scale: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        if not q.is_cuda:
            raise UnsupportedRecipeError(
                "an fp8 layer on a CPU: its product needs an NVIDIA GPU of compute capability 8.9 "
                "or more; take quantize='int8', or samfast.linear.dequantized for its numbers"
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
