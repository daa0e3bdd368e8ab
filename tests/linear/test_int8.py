"""Int8Linear: exact sums, torchao's numbers, and its interface."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from samfast.linear import Int8Linear, quantize_rows
from samfast.linear.dequantized import reference


def linear(inputs=64, outputs=48, bias=True, dtype=torch.float32, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


def activations(*shape, dtype=torch.float32, seed=0):
    """Tokens like a transformer's: of unlike norms, with an outlier channel."""
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(shape, generator=generator)
        * torch.rand(*shape[:-1], 1, generator=generator).mul(4).exp()
    )
    x[..., 3] *= 20
    return x.to(dtype)


def relative(a, b):
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(2, 70),  # torch 2.13's int8 product on a CPU is wrong for one
    outputs=st.integers(1, 50),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_computes_what_the_reference_says(rows, inputs, outputs, bias, seed):
    layer = Int8Linear.from_linear(linear(inputs, outputs, bias, seed=seed))
    x = torch.randn(2, rows, inputs, generator=torch.Generator().manual_seed(seed))
    want = reference(x, layer.weight, layer.weight_scale, layer.bias)
    torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_its_numbers_are_those_of_torchao(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torchao's imports and deprecations
        quantization = pytest.importorskip(
            "torchao.quantization", reason="needs torchao, for its numbers"
        )
        theirs = linear(192, 96, dtype=dtype)
        config = quantization.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        quantization.quantize_(module := nn.Sequential(theirs), config)
        x = activations(300, 192, dtype=dtype)
        want = module(x)
    plain = linear(192, 96, dtype=dtype)
    got = Int8Linear.from_linear(plain)(x)
    truth = plain.double()(x.double())
    assert got.dtype == want.dtype == dtype
    error, torchaos = relative(got, truth), relative(want, truth)
    if dtype == torch.float32:  # elsewhere torchao keeps scales and products in 16 bits
        assert relative(got, want) < 1e-6
    assert 0.001 < error < 0.03
    assert error <= torchaos * 1.001


def test_rows_that_are_quantized_already_give_the_same():
    layer = Int8Linear.from_linear(linear())
    x = activations(3, 5, 64)
    q, scale = quantize_rows(x.view(15, 64), layer.format)
    assert torch.equal(layer.matmul(q, scale).view(3, 5, 48), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_answers(dtype):
    layer = Int8Linear.from_linear(linear(dtype=dtype))
    x = activations(4, 64, dtype=dtype)
    q, scale = quantize_rows(x, torch.int8)
    assert layer.dtype == layer(x).dtype == layer.matmul(q, scale).dtype == dtype
    assert layer.matmul(q, scale, torch.float32).dtype == torch.float32


def test_a_row_of_zeros_is_answered_with_the_bias():
    for dtype in (torch.float32, torch.bfloat16):
        layer = Int8Linear.from_linear(linear(dtype=dtype))
        assert layer.pads_with_bias
        assert torch.equal(layer(torch.zeros(2, 64, dtype=dtype)), layer.bias.expand(2, -1))


def test_its_state_is_eight_bits_a_weight():
    plain = linear(64, 48)
    layer = Int8Linear.from_linear(plain)
    state = layer.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        "weight": torch.int8,
        "weight_scale": torch.float32,
        "bias": torch.float32,
    }
    assert state["weight"].shape == (48, 64) and state["weight_scale"].shape == (48,)
    assert (layer.in_features, layer.out_features, layer.kind) == (64, 48, "int8")
    assert relative(state["weight"].float() * state["weight_scale"][:, None], plain.weight) < 0.01
    assert Int8Linear.from_linear(linear(bias=False)).bias is None


def test_no_input_no_rows():
    assert Int8Linear.from_linear(linear())(torch.empty(0, 64)).shape == (0, 48)


def test_it_compiles_into_one_graph():
    layer = Int8Linear.from_linear(linear())
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    x = activations(20, 64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=keep, fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    assert len(graphs) == 1
    torch._dynamo.reset()
