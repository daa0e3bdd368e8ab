"""SparseInt8Linear: 2:4 sparse int8 weights, int8 activations, on the tensor cores of a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.errors import UnsupportedRecipeError
from samfast.linear.int8 import rescale
from samfast.linear.pattern import check_24
from samfast.linear.quantized_linear import QuantizedLinear
from samfast.linear.sparse_24 import NEEDS_A_GPU, has_cusparselt, pad_rows

ROWS = 16
"""In 8 bits, the sparse products take rows in multiples of this."""


class SparseInt8Linear(QuantizedLinear):
    """As `Int8Linear` without half of the products, by cuSPARSELt.

    packed  the int8 weight without its zeros, and their positions
    """

    kind = "int8"
    format = torch.int8
    packed: Tensor

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        name: str = "weight",
    ) -> None:
        """From a 2:4 sparse int8 weight (out, in) on a GPU; `name` is for messages."""
        super().__init__(weight, weight_scale, bias, dtype)
        if not weight.is_cuda:
            raise UnsupportedRecipeError(NEEDS_A_GPU)
        if not has_cusparselt():
            raise UnsupportedRecipeError(
                "int8 with 2:4 needs a PyTorch with cuSPARSELt, which this one lacks; take "
                "quantize or sparsify alone"
            )
        check_24(weight, name)
        self.register_buffer("packed", torch._cslt_compress(weight.detach().contiguous()))

    def matmul(self, q: Tensor, scale: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        count = q.shape[0]
        rows = pad_rows(q, ROWS).t()
        out_dtype = out_dtype or self.dtype
        if out_dtype != torch.bfloat16:
            # Before they are scaled, sums of int8 products exceed float16.
            sums = torch._cslt_sparse_mm(
                self.packed, rows, out_dtype=torch.int32, transpose_result=True
            )
            return rescale(sums[:count], scale, self.weight_scale, self.bias, out_dtype)
        scaled = torch._cslt_sparse_mm(
            self.packed,
            rows,
            alpha=self.weight_scale,
            out_dtype=torch.bfloat16,
            transpose_result=True,
        )
        out = scaled[:count].float() * scale.unsqueeze(-1)
        if self.bias is not None:
            out = out + self.bias.float()
        return out.to(out_dtype)
