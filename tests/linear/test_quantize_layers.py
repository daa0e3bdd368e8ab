"""The quantize step: which layers it takes, what it leaves, and that windows keep their padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from samfast.errors import CheckpointError, UnsupportedRecipeError
from samfast.linear import Fp8Linear, Int8Linear, QuantizedLinear
from samfast.linear.encoder_layers import LAYERS, encoder_layers
from samfast.linear.quantize_layers import quantize_layers
from samfast.model.image_encoder import Block
from samfast.recipes import Recipe, apply, precision
from tests.model import tiny

CPU = torch.device("cpu")
INT8 = Recipe(attention="sdpa", quantize="int8")


def random_sam(config=tiny.TINY):
    """The same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny.random_sam(config)


def relative(a, b):
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


def pixels(seed=0):
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


def test_layers_are_named_as_in_the_state_dict():
    sam = random_sam()
    layers = encoder_layers(sam)
    assert len(layers) == 4 * tiny.TINY.depth
    state = sam.state_dict()
    for layer in layers:
        assert isinstance(layer.module, nn.Linear)
        assert state[f"{layer.name}.weight"] is not None
        assert layer.name.endswith(f".{layer.layer}")
    assert [layer.layer for layer in encoder_layers(sam, ("lin2", "qkv"))] == [
        "qkv",
        "lin2",
    ] * tiny.TINY.depth


@pytest.mark.parametrize("layers", [LAYERS, ("qkv", "lin1", "lin2"), ("proj",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_int8_takes_the_layers_asked_for_and_stays_near(layers, dtype):
    plain = tiny.applied(random_sam(), Recipe(dtype=dtype, attention="sdpa"))
    sam = tiny.applied(random_sam(), replace(INT8, dtype=dtype, quantized_layers=layers))
    for place in encoder_layers(sam):
        assert isinstance(place.module, Int8Linear if place.layer in layers else nn.Linear)
    got, want = (model.image_encoder(pixels()) for model in (sam, plain))
    assert got.dtype == want.dtype
    assert 0 < relative(got, want) < 0.03
    assert {p.dtype for p in sam.image_encoder.parameters()} == {dtype}


@torch.no_grad()
def test_windows_see_the_same_padding_whether_they_are_cut_or_read_in_place():
    """Layers that answer zeros with their bias take the way without a copy; it gives what the copy
    gives."""
    sam = tiny.applied(random_sam(), replace(INT8, attention="reference"))
    block = sam.image_encoder.blocks[0]
    assert (
        isinstance(block, Block) and block.window_size == 3
    )  # 8 tokens a side: windows with padding
    x = torch.randn(2, 8, 8, 32, generator=torch.Generator().manual_seed(1))
    calls = []
    attend = block.attn.attend
    block.attn.attend = lambda qkv, *a, **k: calls.append(tuple(qkv.shape)) or attend(qkv, *a, **k)
    in_place = block(x)
    vars(block.attn.qkv)["pads_with_bias"] = False
    cut = block(x)
    assert calls == [(2, 8, 8, 96), (18, 3, 3, 96)]
    torch.testing.assert_close(in_place, cut, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_fused_encoder_takes_quantized_layers():
    from samfast.encoding.fused_encoder import FusedEncoder

    sam = tiny.applied(random_sam(), INT8)
    want = sam.image_encoder(pixels())
    got = FusedEncoder(sam.image_encoder)(pixels())
    assert relative(got, want) < 0.01  # a rounding here and there falls the other way


def test_fp8_layers_are_made_but_refused_where_they_cannot_run():
    sam = random_sam()
    precision.convert(sam, torch.bfloat16)
    recipe = Recipe(dtype=torch.bfloat16, quantize="fp8", quantized_layers=("lin1",))
    quantize_layers(sam, recipe.layer_formats)
    assert {type(place.module) for place in encoder_layers(sam, ("lin1",))} == {Fp8Linear}
    with pytest.raises(UnsupportedRecipeError, match="fp8"):
        apply(random_sam(), recipe, CPU)


def test_sizes_that_the_kernels_cannot_take_are_refused_by_name():
    sam = random_sam(replace(tiny.TINY, embed_dim=24))
    with pytest.raises(
        UnsupportedRecipeError,
        match=r"blocks\.0\.attn\.qkv has 24 inputs and 72 outputs.*multiples of 16",
    ):
        quantize_layers(sam, Recipe(dtype=torch.bfloat16, quantize="fp8").layer_formats)
    quantize_layers(sam, INT8.layer_formats)  # a CPU takes any


def test_layers_that_are_quantized_already_stay_or_are_refused():
    sam = random_sam()
    quantize_layers(sam, replace(INT8, quantized_layers=("qkv",)).layer_formats)
    kept = [place.module for place in encoder_layers(sam, ("qkv",))]
    scales = [layer.weight_scale.clone() for layer in kept]
    apply(sam, replace(INT8, dtype=torch.bfloat16), CPU)
    assert [place.module for place in encoder_layers(sam, ("qkv",))] == kept
    assert all(isinstance(place.module, QuantizedLinear) for place in encoder_layers(sam))
    for layer, scale in zip(kept, scales, strict=True):
        assert layer.dtype == layer.bias.dtype == torch.bfloat16
        assert layer.weight_scale.dtype == torch.float32 and torch.equal(layer.weight_scale, scale)
    with pytest.raises(CheckpointError, match="int8 already"):
        quantize_layers(sam, Recipe(dtype=torch.bfloat16, quantize="fp8").layer_formats)


def test_a_module_that_is_not_linear_is_refused_by_name():
    sam = random_sam()
    sam.image_encoder.blocks[1].mlp.lin2 = nn.Sequential(sam.image_encoder.blocks[1].mlp.lin2)
    with pytest.raises(UnsupportedRecipeError, match=r"blocks\.1\.mlp\.lin2 is a Sequential"):
        quantize_layers(sam, INT8.layer_formats)
