"""Matrix products of a CPU by oneDNN, which torch's own wheels contain.

torch calls oneDNN for products in 16 bits and its BLAS for those in float32. These functions call
it for both, with weights that were packed once into the layout that its kernels read, and with GELU
or an addition inside the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.errors import UnsupportedRecipeError


def available() -> bool:
    """Whether this torch has oneDNN and its operations on packed weights."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def takes_bf16() -> bool:
    """Whether it multiplies bfloat16 on this CPU, which needs AVX-512 or AVX-NE-CONVERT."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return available() and bool(supported is None or supported())


def dtypes() -> tuple[torch.dtype, ...]:
    """What it multiplies on this CPU."""
    return (torch.float32, torch.bfloat16) if takes_bf16() else (torch.float32,)


def exact_int8() -> bool:
    """Whether this CPU adds products of bytes in 32 bits (VNNI). Others add pairs in 16, which may
    overflow.
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(supported and supported())


def check(x: Tensor, what: str) -> None:
    """UnsupportedRecipeError, naming what was asked for, unless oneDNN multiplies such a tensor."""
    if x.device.type != "cpu" or x.dtype not in dtypes() or not available():
        dtype = str(x.dtype).removeprefix("torch.")
        raise UnsupportedRecipeError(
            f"{what} runs in float32, with AVX-512 also in bfloat16, on a CPU whose torch has "
            f"oneDNN (torch.backends.mkldnn.is_available()); this is {dtype} on {x.device.type}"
        )


def pack(weight: Tensor) -> Tensor:
    """A weight (N, K) of `dtypes` in the layout that `product` reads; a copy."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    add: Tensor | None = None,
) -> Tensor:
    """x (M, K) times a weight (N, K) transposed, plus a bias (N,): (M, N).

    weight  packed, or a plain tensor of any strides, which is packed at each call
    gelu    of the result, by erf; add: (M, N), added to it. Not both
    """
    assert not (gelu and add is not None)
    linear = torch.ops.mkldnn._linear_pointwise
    out: Tensor
    if add is not None:
        out = linear.binary(x, add, weight, bias, "add")
    elif gelu:
        out = linear(x, weight, bias, "gelu", [], "none")
    else:
        out = linear(x, weight, bias, "none", [], "")
    return out


def pack_int8(weight: Tensor) -> Tensor:
    """An int8 weight (N, K) in the layout that `product_int8` reads; a copy."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed


def product_int8(x: Tensor, packed: Tensor, weight_scale: Tensor) -> Tensor:
    """x (M, K) int8 times a packed int8 weight transposed, times its scales (N,): (M, N) float32.

    The sums are exact, in int32.
    """
    # The processors multiply unsigned bytes by signed ones.
    unsigned = x.view(torch.uint8) ^ 128
    no_zero_points = torch.zeros(len(weight_scale), dtype=torch.int64)
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(unsigned, 1.0, 128),
        *(packed, weight_scale, no_zero_points),
        *(None, 1.0, 0, torch.float32),
        *("none", [], ""),
    )
    return out
