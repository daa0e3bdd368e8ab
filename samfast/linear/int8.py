"""Int8Linear: int8 weights and activations, exact int32 sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.linear.quantized_linear import DenseQuantizedLinear

MIN_ROWS = 17
"""cuBLAS multiplies int8 matrices of more than 16 rows only."""


class Int8Linear(DenseQuantizedLinear):
    """Dynamic int8 as torchao's `Int8DynamicActivationInt8WeightConfig`, on a CPU or a GPU.

    weight  (out_features, in_features) int8
    """

    kind = "int8"
    format = torch.int8

    def matmul(self, q: Tensor, scale: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        rows = q.shape[0]
        if q.is_cuda and rows < MIN_ROWS:
            q = F.pad(q, (0, 0, 0, MIN_ROWS - rows))
        sums = torch._int_mm(q, self.weight.t())[:rows]
        return rescale(sums, scale, self.weight_scale, self.bias, out_dtype or self.dtype)


def rescale(
    sums: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """int32 sums (M, N) times the scales of rows and channels, plus the bias; in float32."""
    out = sums.float() * scale.unsqueeze(-1) * weight_scale
    if bias is not None:
        out = out + bias.float()
    return out.to(out_dtype)
