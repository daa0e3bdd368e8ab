"""The linear layer with GELU in its epilogue against products in float64 and plain float8."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from samfast.encoding import fused_operations
from samfast.encoding.kernels import linear_gelu
from samfast.linear.quantization import quantize_rows

CUDA = torch.cuda.is_available()
HOPPER = CUDA and torch.cuda.get_device_capability() >= linear_gelu.HOPPER
DEVICE = "cuda" if CUDA else "cpu"
# The interpreter's bfloat16 product is wrong, so a GPU tests it.
DTYPES = [torch.float16, *([torch.bfloat16] if CUDA else [])]
FP8 = torch.float8_e4m3fn

pytestmark = pytest.mark.skipif(
    CUDA and not HOPPER,
    reason="the kernel loads by Hopper's copy engine, and nothing launches it elsewhere",
)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


def operands(rows: int, width: int, columns: int) -> tuple[torch.Tensor, ...]:
    """x, weight and bias in float32: hidden values of both signs, of size 1 about."""
    generator = torch.Generator().manual_seed(rows + width)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator).to(DEVICE)

    return random(rows, width), random(columns, width) * width**-0.5, random(columns)


@settings(max_examples=25 if CUDA else 6)
@given(
    rows=st.integers(1, 700 if CUDA else 300),
    eighths=st.integers(1, 100 if CUDA else 12),
    parts=st.integers(1, 5 if CUDA else 2),
    dtype=st.sampled_from(DTYPES),
)
def test_any_size(rows, eighths, parts, dtype):
    x, weight, bias = (
        each.to(dtype) for each in operands(rows, 8 * eighths, linear_gelu.COLUMNS * parts)
    )
    truth = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    plain = F.gelu(F.linear(x, weight, bias))
    answer = linear_gelu.launch(x, weight, bias)
    assert answer.shape == plain.shape and answer.dtype == dtype
    assert relative(answer, truth) <= 2 * relative(plain, truth)


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (200, 208), (300, 1280 if CUDA else 128)])
def test_float8(rows, width):
    x, weight, bias = operands(rows, width, 512)
    bias = bias.to(DTYPES[-1])
    (x, x_scale), (weight, weight_scale) = quantize_rows(x, FP8), quantize_rows(weight, FP8)
    bound = torch.tensor(20.0, device=DEVICE)
    inputs = x, x_scale, weight, weight_scale, bias, bound
    out, scale = linear_gelu.launch_quantized(*inputs)
    want, want_scale = fused_operations.linear_gelu_fp8.function(*(each.cpu() for each in inputs))
    assert out.dtype == FP8 and out.shape == want.shape
    assert torch.equal(scale.cpu(), want_scale)
    # Sums in another order round to the neighbouring float8 now and then. The interpreter's fp8 is
    # not e4m3's rounding.
    assert relative(out.float().cpu(), want.float()) < (0.01 if CUDA else 0.1)
    product = (x.double() * x_scale[:, None]) @ (weight.double() * weight_scale[:, None]).T
    truth = F.gelu(product + bias.double())
    assert relative(out.double() * scale[:, None], truth) < (0.04 if CUDA else 0.1)  # three bits


def test_a_value_beyond_the_bound_is_not_clipped_silently():
    x, weight, bias = operands(3, 16, 256)
    x[1] = 100 * weight[7]
    (x, x_scale), (weight, weight_scale) = quantize_rows(x, FP8), quantize_rows(weight, FP8)
    bound = torch.tensor(20.0, device=DEVICE)
    inputs = x, x_scale, weight, weight_scale, bias, bound
    plain = fused_operations.linear_gelu_fp8.function(*(each.cpu() for each in inputs))
    # The interpreter casts NaN to another float8.
    answers = [plain, linear_gelu.launch_quantized(*inputs)] if CUDA else [plain]
    for out in (answer[0].float() for answer in answers):
        assert out[1, 7].isnan() and not out[0].isnan().any() and not out[2].isnan().any()


def test_tails_are_those_of_gelu():
    # The kernel's GELU is a fit; far from zero it must go to 0 and to x.
    values = torch.tensor([-60000.0, -300, -20, -8, -3, -0.7, 0, 0.7, 3, 8, 20, 300, 60000])
    x = torch.zeros(len(values), 16, dtype=DTYPES[-1], device=DEVICE)
    x[:, 0] = values.to(x)
    weight = torch.zeros(linear_gelu.COLUMNS, 16, dtype=x.dtype, device=DEVICE)
    weight[:, 0] = 1
    answer = linear_gelu.launch(x, weight, torch.zeros_like(weight[:, 0]))[:, 0].double()
    torch.testing.assert_close(answer, F.gelu(x[:, 0].double()), rtol=2**-8, atol=1e-6)
