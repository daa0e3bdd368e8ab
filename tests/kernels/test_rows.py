"""The fused encoder's kernels against their references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from samfast.encoding import fused_operations
from samfast.encoding.fused_operations import RowPass
from samfast.encoding.kernels import patches
from samfast.encoding.kernels.row_passes import launch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


@settings(max_examples=50 if CUDA else 40)
@given(
    rows=st.integers(1, 9),
    repeats=st.integers(1, 3),
    width=st.sampled_from([1, 16, 33, 192, 256, 768, 1280, 3072]),
    dtype=st.sampled_from(DTYPES),
    add=st.booleans(),
    shift=st.booleans(),
    norm=st.booleans(),
    gelu=st.booleans(),
    quantize=st.sampled_from([None, torch.int8, torch.float8_e4m3fn]),
)
def test_any_pass(rows, repeats, width, dtype, add, shift, norm, gelu, quantize):
    generator = torch.Generator().manual_seed(width)

    def random(*sizes: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator).to(DEVICE, kind)

    if norm and gelu:
        gelu = False  # no pass does both
    if norm and width == 1:
        norm = False  # the norm of one number is the bias
    x = random(rows * repeats, width)
    step = RowPass(
        y=random(rows, width) if add else None,
        shift=random(width, kind=torch.float32) if shift else None,
        norm=(random(width), random(width), 1e-6) if norm else None,
        gelu=gelu,
        quantize=quantize,
    )
    total, out, scales = launch(x, step)
    want_total, want, want_scales = fused_operations.run_plainly(x, step)
    assert out.dtype == want.dtype and out.shape == want.shape and scales.shape == want_scales.shape
    assert relative(total, want_total) <= TOLERANCE[dtype]
    if quantize is None:
        assert relative(out, want) <= TOLERANCE[dtype]
        return
    assert relative(scales, want_scales) <= 1e-5
    # A value on the border of two steps may fall to either side.
    difference = (out.float() - want.float()).abs()
    if quantize == torch.int8:
        assert difference.max() <= 1
    elif CUDA:  # the interpreter's fp8 is not e4m3's rounding
        # A step of e4m3 is at most an eighth of the value, and 2**-9 below 2**-6.
        assert bool((difference <= (want.float().abs() / 8).clamp(min=2**-9)).all())
    if CUDA or quantize == torch.int8:
        assert float((difference > 0).float().mean()) <= 0.02


def test_rows_of_zeros_are_quantized_to_zeros():
    _, out, scales = launch(torch.zeros(3, 32, device=DEVICE), RowPass(quantize=torch.int8))
    assert not out.any() and bool((scales > 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_is_by_erf_over_its_whole_range(dtype):
    x = torch.linspace(-12, 12, 4096, device=DEVICE).to(dtype).view(2, 2048)
    want = torch.nn.functional.gelu(x.double())
    error = (launch(x, RowPass(gelu=True))[1].double() - want).abs()
    resolution = torch.finfo(dtype).eps
    assert bool((error <= 2 * resolution * want.abs() + 1e-6).all())


def test_the_result_may_replace_the_input():
    x = torch.randn(2, 2048, device=DEVICE)
    want = launch(x, RowPass(gelu=True))[1]
    launch(x, RowPass(gelu=True, out=x))
    assert torch.equal(x, want)


@pytest.mark.parametrize("side", [4, 16])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_patches(side, colours, dtype):
    pixels = torch.randn(2, colours, 3 * side, 3 * side, device=DEVICE)
    want = fused_operations.patches.function(pixels, side, dtype)
    assert torch.equal(patches.launch(pixels, side, dtype), want)
