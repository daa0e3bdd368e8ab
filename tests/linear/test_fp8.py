"""Fp8Linear without a GPU: its numbers by the reference, and a refusal; its kernel: tests/gpu."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samfast.errors import UnsupportedRecipeError
from samfast.linear import Fp8Linear
from samfast.linear.dequantized import dequantize, reference


def linear(inputs=64, outputs=48, dtype=torch.bfloat16):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(inputs, outputs).to(dtype).requires_grad_(False)


def test_its_state_is_eight_bits_a_weight():
    layer = Fp8Linear.from_linear(linear())
    assert {name: value.dtype for name, value in layer.state_dict().items()} == {
        "weight": torch.float8_e4m3fn,
        "weight_scale": torch.float32,
        "bias": torch.bfloat16,
    }
    assert (layer.kind, layer.in_features, layer.out_features) == ("fp8", 64, 48)
    assert layer.pads_with_bias


def test_the_reference_is_near_the_float_product():
    plain = linear()
    layer = Fp8Linear.from_linear(plain)
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    want = plain.double()(x.double())
    got = reference(x, layer.weight, layer.weight_scale, layer.bias)
    assert 0.005 < float((got - want).norm() / want.norm()) < 0.05
    of_zeros = reference(torch.zeros(1, 64), layer.weight, layer.weight_scale, layer.bias)
    assert torch.equal(of_zeros[0], layer.bias.float())
    off = (dequantize(layer.weight, layer.weight_scale) - plain.weight).abs()
    assert bool((off <= plain.weight.abs() * 2**-4 + layer.weight_scale[:, None] * 2**-10).all())


def test_on_a_cpu_it_says_what_it_needs():
    layer = Fp8Linear.from_linear(linear())
    with pytest.raises(UnsupportedRecipeError, match=r"compute capability 8\.9.*int8"):
        layer(torch.zeros(4, 64, dtype=torch.bfloat16))
