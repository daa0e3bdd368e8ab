"""The encoder by oneDNN's products against the plain one, with the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import samfast
from samfast import attention
from samfast.device import onednn_products
from samfast.device.openvino_compiler import openvino_installed
from samfast.encoding.onednn_encoder import OneDnnEncoder
from samfast.errors import UnsupportedRecipeError
from samfast.linear import Int8Linear
from samfast.linear.onednn_layers import pack_layer
from samfast.recipes import RECIPES, Recipe, apply, refusal
from tests.encoding.small_encoder import leave_out, relative

pytestmark = pytest.mark.skipif(not onednn_products.available(), reason="this torch has no oneDNN")

CPU = torch.device("cpu")


@torch.no_grad()
@pytest.mark.parametrize("name", ["reference", "blocked", "onednn"])
def test_it_equals_the_plain_encoder(sam, name):
    pixels = torch.randn(2, 3, 256, 256)
    truth = sam.double().image_encoder(pixels.double())
    for dtype in onednn_products.dtypes():
        floor = 1e-6 if dtype == torch.float32 else 0.0
        sam.to(dtype)
        plain = relative(sam.image_encoder(pixels.to(dtype)), truth)
        for block in sam.image_encoder.blocks:
            block.attn.attend = attention.get(name)
        answer = OneDnnEncoder(sam.image_encoder)(pixels)
        for block in sam.image_encoder.blocks:
            del block.attn.attend
        assert answer.dtype == dtype
        assert relative(answer, truth) <= max(2 * plain, floor)


@torch.no_grad()
@pytest.mark.parametrize("missing", ["positions", "biases", "relative positions"])
def test_an_encoder_without_positions_or_biases(sam, missing):
    encoder = sam.image_encoder
    leave_out(encoder, missing)
    pixels = torch.randn(1, 3, 256, 256)
    assert relative(OneDnnEncoder(encoder)(pixels), encoder(pixels)) < 3e-6


@torch.no_grad()
@pytest.mark.parametrize("change", ["load", "write", "replace"])
def test_changed_weights_are_packed_again(sam, change):
    encoder, layer = sam.image_encoder, sam.image_encoder.blocks[2].mlp.lin1
    fast = OneDnnEncoder(encoder)
    pixels = torch.randn(1, 3, 256, 256)
    before = fast(pixels)
    assert torch.equal(fast(pixels), before)
    if change == "load":
        sam.load_state_dict({k: v * 1.1 for k, v in sam.state_dict().items()})
    elif change == "write":
        layer.weight.mul_(1.5)
    else:
        layer.weight = nn.Parameter(layer.weight * 1.5)
    after = fast(pixels)
    assert relative(after, before) > 1e-4
    assert relative(after, encoder(pixels)) < 3e-6


@torch.no_grad()
@pytest.mark.skipif(not onednn_products.exact_int8(), reason="this CPU has no VNNI")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_int8_layer_gives_the_numbers_of_torch_s(dtype, bias):
    layer = Int8Linear.from_linear(nn.Linear(96, 72, bias=bias).to(dtype))
    x = torch.randn(31, 96).mul(torch.rand(31, 1).mul(4).exp()).to(dtype)
    # Apart from the order of additions, which may move a result to the next bfloat16.
    near = {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    packed, plain, other = pack_layer(layer), layer(x), torch.randn(31, 72).to(dtype)
    assert packed(x).dtype == dtype
    assert relative(packed(x), plain) < near
    assert relative(packed(x, gelu=True), F.gelu(plain.double())) < near
    assert relative(packed(x, add=other), plain.double() + other) < near


@torch.no_grad()
@pytest.mark.skipif(not onednn_products.exact_int8(), reason="this CPU has no VNNI")
@pytest.mark.parametrize("layers", [("qkv", "proj", "lin1", "lin2"), ("lin1",)])
def test_int8_layers_lose_what_those_of_torch_lose(sam, layers):
    pixels = torch.randn(1, 3, 256, 256)
    truth = sam.image_encoder(pixels)
    by_torch = apply(sam, Recipe(quantize="int8", quantized_layers=layers), CPU).encode(pixels)
    assert isinstance(sam.image_encoder.blocks[0].mlp.lin1, Int8Linear)
    loss = relative(OneDnnEncoder(sam.image_encoder)(pixels), truth)
    assert 0 < loss < 1.2 * relative(by_torch, truth)


@torch.no_grad()
def test_a_batch_is_its_images(sam):
    pixels = torch.randn(3, 3, 256, 256)
    fast = OneDnnEncoder(sam.image_encoder)
    assert torch.equal(fast(pixels), torch.cat([fast(each[None]) for each in pixels]))


def test_a_model_loaded_in_inference_mode():
    with torch.inference_mode():
        sam = samfast.load(
            "vit_xs", checkpoint="random", device="cpu", recipe="fp32_onednn", image_size=256
        )
        pixels = torch.randn(1, 3, 256, 256)
        assert relative(sam.encode(pixels), sam.model.image_encoder(pixels)) < 3e-6


def test_other_blocks_and_layers_are_refused(sam):
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x

    sam.image_encoder.blocks[1].attn.proj = Adapted(192, 192)
    with pytest.raises(UnsupportedRecipeError, match="this is a Adapted"):
        OneDnnEncoder(sam.image_encoder)(torch.zeros(1, 3, 256, 256))
    sam.image_encoder.blocks[1].mlp.act = nn.GELU(approximate="tanh")
    with pytest.raises(UnsupportedRecipeError, match="GELU by erf"):
        OneDnnEncoder(sam.image_encoder)


def test_devices_without_onednn_refuse_the_recipes(monkeypatch):
    for name in ("fp32_onednn", "bf16_onednn", "int8_onednn", "fp32_int8_onednn"):
        assert "is for CPUs" in str(_on_a_gpu(monkeypatch, RECIPES[name]))
    monkeypatch.setattr(onednn_products, "takes_bf16", lambda: False)
    for name in ("bf16_onednn", "bf16_openvino", "int8_onednn"):
        if name != "bf16_openvino" or openvino_installed():
            assert "AVX-512" in str(refusal(RECIPES[name], CPU))
    monkeypatch.setattr(onednn_products, "takes_bf16", lambda: True)
    monkeypatch.setattr(onednn_products, "exact_int8", lambda: False)
    for name in ("int8_onednn", "fp32_int8_onednn"):
        assert "VNNI" in str(refusal(RECIPES[name], CPU))
    assert refusal(RECIPES["bf16_onednn"], CPU) is None
    monkeypatch.setattr(onednn_products, "available", lambda: False)
    assert "built with oneDNN" in str(refusal(RECIPES["bf16_onednn"], CPU))
    with pytest.raises(UnsupportedRecipeError, match="take one of the two"):
        replace(RECIPES["fp32_onednn"], compile="default")


def _on_a_gpu(monkeypatch, recipe: Recipe) -> str | None:
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        patched.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        patched.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
        return refusal(recipe, torch.device("cuda"))
