"""SparseLinear: 2:4 sparse weights in 16 bits, on the tensor cores of a GPU."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfast.errors import UnsupportedRecipeError
from samfast.linear.pattern import check_24

ROWS = 8
"""In 16 bits, the sparse products take rows in multiples of this."""

NEEDS_A_GPU = (
    "a 2:4 layer on a CPU: its product needs an NVIDIA GPU of compute capability 8.0 or more; take "
    "a recipe without sparsify, which multiplies the same weights with their zeros"
)


class SparseLinear(nn.Module):
    """y = x W^T + b without half of W's products, by cuSPARSELt, or CUTLASS if torch lacks it.

    kind            what its rows are quantized to: nothing
    packed          the weight without its zeros; with cuSPARSELt, their positions too
    meta            with CUTLASS, the positions of the zeros; else None
    bias            (out_features,) or None
    pads_with_bias  the output of a row of zeros is exactly the bias

    Raises UnsupportedRecipeError on a CPU and for a weight that lacks the pattern.
    """

    kind = ""
    pads_with_bias = True
    packed: Tensor
    meta: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, name: str = "weight") -> None:
        """From a 2:4 sparse weight (out, in), bf16 or fp16 on a GPU; `name` is for messages."""
        super().__init__()
        if not weight.is_cuda:
            raise UnsupportedRecipeError(NEEDS_A_GPU)
        check_24(weight, name)
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        packed, meta = _compress(weight.detach().contiguous())
        self.register_buffer("packed", packed)
        self.register_buffer("meta", meta)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """The layer with its weight compressed, on its device."""
        return cls(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        rows = x.reshape(-1, self.in_features)
        count = rows.shape[0]
        x_t = pad_rows(rows, ROWS).t()
        if self.meta is None:
            out = torch._cslt_sparse_mm(self.packed, x_t, bias=self.bias, transpose_result=True)
        elif self.bias is None:
            out = torch._sparse_semi_structured_mm(self.packed, self.meta, x_t).t().contiguous()
        else:
            out = torch._sparse_semi_structured_addmm(self.bias, self.packed, self.meta, x_t)
            out = out.t().contiguous()
        return out[:count].view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        library = "cuSPARSELt" if self.meta is None else "CUTLASS"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, by {library}"
        )


def pad_rows(rows: Tensor, multiple: int) -> Tensor:
    """(M, K) -> (M', K), contiguous in K; M' is the next multiple of that number."""
    missing = -rows.shape[0] % multiple
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows.contiguous()


def multiples() -> tuple[int, int]:
    """The numbers that divide the outputs and inputs of a 16-bit layer."""
    return (16, 16) if has_cusparselt() else (32, 64)


def has_cusparselt() -> bool:
    """Whether this torch was built with cuSPARSELt and can load it."""
    return bool(torch.backends.cusparselt.is_available())


def _compress(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    if has_cusparselt():
        return torch._cslt_compress(weight), None
    from torch.sparse import _semi_structured_conversions as conversions

    convert: Any = conversions.sparse_semi_structured_from_dense_cutlass
    packed, meta = convert(weight)
    return packed, meta
