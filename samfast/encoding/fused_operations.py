"""The fused passes as operations of PyTorch: `samfast::norm`, `add_norm`, `gelu`, `gelu_`,
`quantize` and `patches`.

All but the last return their result and the scales of its rows, which are empty unless `kind` asks
for quantization: "int8", "fp8", or "" for none. On a GPU they are Triton kernels, elsewhere their
reference in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samfast.device.triton_support import need_triton
from samfast.encoding import fused_reference

KINDS = {"": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}

Rows = Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Operations:
    """Callables over rows (M, C).

    norm      (x, shift | None, weight, bias, eps, kind) -> LayerNorm(x + shift), scales
    add_norm  (x, y, shift | None, weight, bias, eps, kind) -> x + y + shift, its LayerNorm, scales;
              y may have fewer rows, and is repeated
    gelu      (x, kind) -> GELU (by erf), scales
    gelu_     (x): the same in place, not quantized
    quantize  (x, kind) -> x quantized, scales
    patches   (pixels, side, dtype) -> a patch a row; see `samfast.encoding.fused_reference.patches`
    """

    norm: Callable[[Tensor, Tensor | None, Tensor, Tensor, float, str], tuple[Tensor, Tensor]]
    add_norm: Callable[
        [Tensor, Tensor, Tensor | None, Tensor, Tensor, float, str], tuple[Tensor, Tensor, Tensor]
    ]
    gelu: Callable[[Tensor, str], tuple[Tensor, Tensor]]
    gelu_: Callable[[Tensor], None]
    quantize: Callable[[Tensor, str], tuple[Tensor, Tensor]]
    patches: Callable[[Tensor, int, torch.dtype], Tensor]


_made: Operations | None = None


def operations() -> Operations:
    """The operations; registered with PyTorch when first asked for."""
    global _made  # not functools.cache, through which torch.compile would trace
    if _made is None:
        _made = _register()
    return _made


def _register() -> Operations:

    @torch.library.custom_op("samfast::norm", mutates_args=())
    def norm(
        x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, eps: float, kind: str
    ) -> tuple[Tensor, Tensor]:
        _, out, scales = _rows(x)(x, shift=shift, norm=(weight, bias, eps), quantize=KINDS[kind])
        return out, scales

    @norm.register_fake
    def _(
        x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, eps: float, kind: str
    ) -> tuple[Tensor, Tensor]:
        return _shapes(x, kind)

    @torch.library.custom_op("samfast::add_norm", mutates_args=())
    def add_norm(
        x: Tensor,
        y: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        kind: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _rows(x)(x, y=y, shift=shift, norm=(weight, bias, eps), quantize=KINDS[kind])

    @add_norm.register_fake
    def _(
        x: Tensor,
        y: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        kind: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(x), *_shapes(x, kind)

    @torch.library.custom_op("samfast::gelu", mutates_args=())
    def gelu(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        _, out, scales = _rows(x)(x, gelu=True, quantize=KINDS[kind])
        return out, scales

    @gelu.register_fake
    def _(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        return _shapes(x, kind)

    @torch.library.custom_op("samfast::gelu_", mutates_args=("x",))
    def gelu_(x: Tensor) -> None:
        _rows(x)(x, gelu=True, out=x)

    @torch.library.custom_op("samfast::quantize", mutates_args=())
    def quantize(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        _, out, scales = _rows(x)(x, quantize=KINDS[kind])
        return out, scales

    @quantize.register_fake
    def _(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        return _shapes(x, kind)

    @torch.library.custom_op("samfast::patches", mutates_args=())
    def patches(pixels: Tensor, side: int, dtype: torch.dtype) -> Tensor:
        if pixels.device.type != "cuda":
            return fused_reference.patches(pixels, side, dtype)
        need_triton("a fused recipe")
        from samfast.encoding.kernels.patches import launch

        return launch(pixels, side, dtype)

    @patches.register_fake
    def _(pixels: Tensor, side: int, dtype: torch.dtype) -> Tensor:
        batch, colours, size, _ = pixels.shape
        return pixels.new_empty(batch * (size // side) ** 2, colours * side * side, dtype=dtype)

    made: dict[str, Any] = {
        "norm": norm,
        "add_norm": add_norm,
        "gelu": gelu,
        "gelu_": gelu_,
        "quantize": quantize,
        "patches": patches,
    }
    return Operations(**made)


def _shapes(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x, dtype=KINDS[kind] or x.dtype)
    return out, x.new_empty(x.shape[0] if kind else 0, dtype=torch.float32)


def _rows(x: Tensor) -> Rows:
    """The kernel on a GPU, the reference elsewhere."""
    if x.device.type != "cuda":
        return fused_reference.rows
    need_triton("a fused recipe")
    from samfast.encoding.kernels.row_passes import launch

    return launch
