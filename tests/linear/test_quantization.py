"""quantize_rows and quantize_weight: rounding to nearest, a scale per row, zeros and huge rows."""

from __future__ import annotations

import pytest
import torch

from samfast.encoding.fused_operations import RowPass, run_plainly
from samfast.linear import quantize_rows
from samfast.linear.quantization import LARGEST, quantize_weight

FORMATS = list(LARGEST)


def rows(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_comes_back_within_half_a_step(dtype, of):
    x = rows(3, 7, 65).mul(30).to(of)
    q, scale = quantize_rows(x, dtype)
    assert q.dtype == dtype and q.shape == x.shape
    assert scale.dtype == torch.float32 and scale.shape == (3, 7)
    off = (q.float() * scale[..., None] - x.float()).abs()
    if dtype == torch.int8:
        assert bool((off <= scale[..., None] * 0.5001).all())
    else:  # three bits after the leading one, and subnormal steps of 2^-9
        step = (x.float().abs() * 2**-4).maximum(scale[..., None] * 2**-10)
        assert bool((off <= step * 1.0001).all())
    largest = q.float().abs().amax(dim=-1)
    assert bool((largest == LARGEST[dtype]).all())


@pytest.mark.parametrize("dtype", FORMATS)
def test_zeros_stay_zeros_and_extremes_stay_finite(dtype):
    x = torch.tensor([0.0, 1e-30, 3e38, -65504.0])[:, None].repeat(1, 8)
    q, scale = quantize_rows(x, dtype)
    assert not q[0].float().any()
    assert bool(torch.isfinite(q.float()).all()) and bool(torch.isfinite(scale).all())
    assert bool((scale > 0).all())
    assert q[2].float().tolist() == [LARGEST[dtype]] * 8
    assert q[3].float().tolist() == [-LARGEST[dtype]] * 8


def test_halves_go_to_the_even_neighbour():
    q, scale = quantize_rows(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]), torch.int8)
    assert scale.tolist() == [1.0]
    assert q.tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_fused_kernels_reference_quantizes_alike(dtype):
    x = rows(40, 96) * 3
    _, q, scale = run_plainly(x, RowPass(quantize=dtype))
    want, want_scale = quantize_rows(x, dtype)
    assert torch.equal(scale, want_scale)
    assert torch.equal(q.float(), want.float())


@pytest.mark.parametrize("dtype", FORMATS)
def test_weights_have_a_scale_an_output_channel(dtype):
    weight = rows(6, 32) * torch.tensor([1e-3, 1, 5, 1e3, 0, 1])[:, None]
    q, scale = quantize_weight(weight, dtype)
    assert q.dtype == dtype and scale.shape == (6,)
    off = (q.float() * scale[:, None] - weight).norm(dim=1)
    assert bool((off <= weight.norm(dim=1) * 0.04).all())


def test_int8_weights_use_the_whole_range():
    q, scale = quantize_weight(torch.tensor([[-127.5, 64.0], [127.5, -1.0]]), torch.int8)
    assert scale.tolist() == [1.0, 1.0]
    assert q.tolist() == [[-128, 64], [127, -1]]
