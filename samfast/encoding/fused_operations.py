"""The fused encoder's passes over rows and pixels, as operations of PyTorch.

Most are one pass over the rows of a matrix (M, C): a Triton kernel on a GPU, elsewhere its
reference in plain torch. `kind` is what they quantize to, row by row: "int8", "fp8", or "" for
nothing, when the scales of the rows are empty. A linear layer and its GELU are one kernel on
Hopper, and elsewhere a product and a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.device.custom_ops import on_gpu, operation
from samfast.device.triton_support import need_triton
from samfast.linear.quantization import LARGEST, quantize_rows

FORMATS = {"": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class RowPass:
    """One pass over rows x: (x + y + shift), normalised or through GELU, then quantized.

    y         (a divisor of M, C), contiguous: added, repeated
    shift     (C,), added to every row
    norm      weight and bias, each (C,), and epsilon of a LayerNorm
    quantize  to this dtype, with a scale per row
    out       where the result is written, like x; may be x itself. None: into new memory
    """

    y: Tensor | None = None
    shift: Tensor | None = None
    norm: tuple[Tensor, Tensor, float] | None = None
    gelu: bool = False
    quantize: torch.dtype | None = None
    out: Tensor | None = None


Rows = tuple[Tensor, Tensor, Tensor]
"""x + y + shift (x itself without y), the result (M, C), and its scales: (M,) float32, or (0,)."""


def run_plainly(x: Tensor, step: RowPass) -> Rows:
    """A pass in plain torch: in float32, rounded where the kernel stores."""
    value, new_x = x.float(), x
    if step.y is not None:
        value = value + step.y.float().repeat(x.shape[0] // step.y.shape[0], 1)
    if step.shift is not None:
        value = value + step.shift.float()
    if step.y is not None:
        new_x = value.to(x.dtype)
        value = new_x.float()
    if step.norm is not None:
        weight, bias, eps = step.norm
        value = F.layer_norm(value, (x.shape[1],), weight.float(), bias.float(), eps)
    if step.gelu:
        value = F.gelu(value)
    if step.quantize is not None:
        return new_x, *quantize_rows(value, step.quantize)
    result = value.to(x.dtype) if step.out is None else step.out.copy_(value)
    return new_x, result, x.new_empty(0, dtype=torch.float32)


def _run(x: Tensor, step: RowPass) -> Rows:
    if not on_gpu(x):
        return run_plainly(x, step)
    need_triton("a fused recipe")
    from samfast.encoding.kernels.row_passes import launch

    return launch(x, step)


def _empty(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Unwritten rows and scales."""
    out = torch.empty_like(x, dtype=FORMATS[kind] or x.dtype)
    return out, x.new_empty(x.shape[0] if kind else 0, dtype=torch.float32)


@operation(fake=lambda x, *rest: _empty(x, rest[-1]))
def norm(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, eps: float, kind: str
) -> tuple[Tensor, Tensor]:
    """LayerNorm(x + shift), and its scales."""
    step = RowPass(shift=shift, norm=(weight, bias, eps), quantize=FORMATS[kind])
    _, out, scales = _run(x, step)
    return out, scales


@operation(fake=lambda x, *rest: (torch.empty_like(x), *_empty(x, rest[-1])))
def add_norm(
    x: Tensor, y: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, eps: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """x + y + shift, its LayerNorm, and the scales of that; y may have fewer rows, to repeat."""
    step = RowPass(y=y, shift=shift, norm=(weight, bias, eps), quantize=FORMATS[kind])
    return _run(x, step)


@operation(fake=_empty)
def gelu(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """GELU by erf, and its scales."""
    _, out, scales = _run(x, RowPass(gelu=True, quantize=FORMATS[kind]))
    return out, scales


@operation(mutates=("x",))
def gelu_(x: Tensor) -> None:
    """GELU by erf in place."""
    _run(x, RowPass(gelu=True, out=x))


def multiplies_with_gelu(x: Tensor, weight: Tensor) -> bool:
    """Whether x W^T and GELU are one kernel: for rows of 8 or 16 bits on Hopper."""
    if not on_gpu(x):
        return False
    need_triton("a fused recipe")
    from samfast.encoding.kernels.linear_gelu import fits

    return fits(x, weight)


@operation(fake=lambda x, weight, bias: x.new_empty(len(x), len(weight)))
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(x W^T + b) of rows x (M, K), by erf."""
    if multiplies_with_gelu(x, weight):
        from samfast.encoding.kernels.linear_gelu import launch

        return launch(x, weight, bias)
    hidden = F.linear(x, weight, bias)
    return _run(hidden, RowPass(gelu=True, out=hidden))[1]


def _empty_fp8(x: Tensor, x_scale: Tensor, weight: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(weight)), torch.empty_like(x_scale)


@operation(fake=_empty_fp8)
def linear_gelu_fp8(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, bound: Tensor
) -> tuple[Tensor, Tensor]:
    """The same of float8 rows and weights, to float8, with the scales of the rows.

    x_scale, weight_scale  (M,), (N,) float32
    bound                  () float32, above every magnitude of the result; it becomes the largest
                           float8, and what is larger becomes NaN. The largest of a row would be
                           known too late: programs have parts of it
    """
    if multiplies_with_gelu(x, weight):
        from samfast.encoding.kernels.linear_gelu import launch_quantized

        return launch_quantized(x, x_scale, weight, weight_scale, bias, bound)
    rows, columns = x.float() * x_scale[:, None], weight.float() * weight_scale[:, None]
    scale = bound / LARGEST[x.dtype]
    value = F.gelu(F.linear(rows, columns, bias.float())) / scale
    value = value.masked_fill(value.abs() > LARGEST[x.dtype], torch.nan)
    return value.to(x.dtype), scale.expand(len(x)).contiguous()


@operation(fake=_empty)
def quantize(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """x quantized, and its scales."""
    _, out, scales = _run(x, RowPass(quantize=FORMATS[kind]))
    return out, scales


@operation(
    kernel="samfast.encoding.kernels.patches",
    fake=lambda pixels, side, dtype: pixels.new_empty(
        pixels.shape[0] * (pixels.shape[2] // side) ** 2, pixels.shape[1] * side**2, dtype=dtype
    ),
)
def patches(pixels: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """(B, colours, S, S) pixels, contiguous -> (B * (S / side)**2, colours * side**2)."""
    batch, colours, size, _ = pixels.shape
    grid = size // side
    split = pixels.to(dtype).view(batch, colours, grid, side, grid, side)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch * grid * grid, colours * side * side)


def register() -> None:
    """Register the operations with PyTorch, before code that uses them is compiled."""
    for each in (norm, add_norm, gelu, gelu_, linear_gelu, linear_gelu_fp8, quantize, patches):
        each.register()
