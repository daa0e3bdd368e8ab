"""The encoder compiled by OpenVINO against the plain one, with the same weights."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

import samfast
from samfast.device import onednn_products, openvino_compiler
from samfast.device.openvino_compiler import openvino_installed
from samfast.encoding import openvino_encoder
from samfast.encoding.openvino_encoder import OpenVinoEncoder
from samfast.errors import MissingExtraError, UnsupportedRecipeError
from samfast.linear import Int8Linear
from samfast.loading import random_weights
from samfast.recipes import RECIPES, Recipe, apply, refusal
from tests.encoding.small_encoder import SMALL, leave_out, relative

CPU = torch.device("cpu")

needs_openvino = pytest.mark.skipif(
    not openvino_installed() or not onednn_products.available(),
    reason="the extra openvino is not installed, or this torch has no oneDNN",
)


@pytest.fixture
def compilations(monkeypatch) -> list[torch.dtype]:
    """The dtypes of the graphs that are compiled meanwhile."""
    dtypes: list[torch.dtype] = []

    def compile_graph(graph, dtype):
        dtypes.append(dtype)
        return openvino_compiler.compile_graph(graph, dtype)

    monkeypatch.setattr(openvino_encoder, "compile_graph", compile_graph)
    return dtypes


@needs_openvino
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_the_plain_encoder(sam, dtype):
    pixels = torch.randn(2, 3, 256, 256)
    truth = sam.double().image_encoder(pixels.double())
    sam.to(dtype)
    plain = relative(sam.image_encoder(pixels.to(dtype)), truth)
    answer = OpenVinoEncoder(sam.image_encoder)(pixels)
    assert answer.dtype == dtype
    assert answer.shape == truth.shape
    assert relative(answer, truth) <= max(2 * plain, 1e-6)


@needs_openvino
@torch.no_grad()
@pytest.mark.parametrize("missing", ["positions", "biases", "relative positions"])
def test_an_encoder_without_positions_or_biases(sam, missing):
    encoder = sam.image_encoder
    leave_out(encoder, missing)
    pixels = torch.randn(1, 3, 256, 256)
    assert relative(OpenVinoEncoder(encoder)(pixels), encoder(pixels)) < 3e-6


@needs_openvino
@torch.no_grad()
@pytest.mark.parametrize("dim", [192, 240])
def test_windows_that_fit_the_grid_and_heads_of_another_width(dim):
    """No padding tokens, and a scale of scores that is no power of two."""
    sizes = replace(SMALL, image_size=224, embed_dim=dim, num_heads=3)
    sam = random_weights(sizes)
    with torch.no_grad():
        for parameter in sam.image_encoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    pixels = torch.randn(1, 3, 224, 224)
    plain = sam.image_encoder(pixels)
    assert relative(OpenVinoEncoder(sam.image_encoder)(pixels), plain) < 3e-6


@needs_openvino
@torch.no_grad()
@pytest.mark.parametrize("change", ["load", "write", "replace"])
def test_changed_weights_are_compiled_again(sam, change, compilations):
    encoder, layer = sam.image_encoder, sam.image_encoder.blocks[2].mlp.lin1
    fast = OpenVinoEncoder(encoder)
    pixels = torch.randn(1, 3, 256, 256)
    before = fast(pixels)
    assert torch.equal(fast(pixels), before)
    assert len(compilations) == 1
    if change == "load":
        sam.load_state_dict({k: v * 1.1 for k, v in sam.state_dict().items()})
    elif change == "write":
        layer.weight.mul_(1.5)
    else:
        layer.weight = nn.Parameter(layer.weight * 1.5)
    after = fast(pixels)
    assert len(compilations) == 2
    assert relative(after, before) > 1e-4
    assert relative(after, encoder(pixels)) < 3e-6


@needs_openvino
def test_a_model_loaded_in_inference_mode(compilations):
    """Torch does not count writes to its tensors."""
    with torch.inference_mode():
        sam = samfast.load(
            "vit_xs", checkpoint="random", device="cpu", recipe="fp32_openvino", image_size=256
        )
        pixels = torch.randn(1, 3, 256, 256)
        assert relative(sam.encode(pixels), sam.model.image_encoder(pixels)) < 3e-6
        sam.encode(pixels)
        assert len(compilations) == 1
        sam.model.image_encoder.blocks[2].mlp.lin1.weight.mul_(1.5)
        assert relative(sam.encode(pixels), sam.model.image_encoder(pixels)) < 3e-6
        assert len(compilations) == 2


@needs_openvino
@torch.no_grad()
def test_threads_are_torch_s(sam):
    fast = OpenVinoEncoder(sam.image_encoder)
    pixels = torch.randn(1, 3, 256, 256)
    before, threads = fast(pixels), torch.get_num_threads()
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            assert relative(fast(pixels), before) < 1e-6
            compiled = fast._compiled.request.get_compiled_model()
            assert compiled.get_property("INFERENCE_NUM_THREADS") == count
    finally:
        torch.set_num_threads(threads)


@needs_openvino
@torch.no_grad()
@pytest.mark.skipif(not onednn_products.exact_int8(), reason="this CPU has no VNNI")
@pytest.mark.parametrize("layers", [("qkv", "proj", "lin1", "lin2"), ("lin1",)])
def test_int8_layers_lose_what_those_of_torch_lose(sam, layers):
    pixels = torch.randn(1, 3, 256, 256)
    truth = sam.image_encoder(pixels)
    by_torch = apply(sam, Recipe(quantize="int8", quantized_layers=layers), CPU).encode(pixels)
    assert isinstance(sam.image_encoder.blocks[0].mlp.lin1, Int8Linear)
    loss = relative(OpenVinoEncoder(sam.image_encoder)(pixels), truth)
    assert 0 < loss < 1.2 * relative(by_torch, truth)


@needs_openvino
@torch.no_grad()
@pytest.mark.skipif(not onednn_products.exact_int8(), reason="this CPU has no VNNI")
def test_int8_rows_of_zeros_give_the_bias(sam):
    norm = sam.image_encoder.blocks[0].norm2
    norm.weight.zero_()
    norm.bias.zero_()
    pixels = torch.randn(1, 3, 256, 256)
    truth = sam.image_encoder(pixels)
    answer = apply(sam, Recipe(quantize="int8", products="openvino"), CPU).encode(pixels)
    assert bool(answer.isfinite().all())
    assert relative(answer, truth) < 0.1


@needs_openvino
@torch.no_grad()
def test_a_batch_is_its_images_and_answers_are_kept(sam):
    pixels = torch.randn(3, 3, 256, 256)
    fast = OpenVinoEncoder(sam.image_encoder)
    first = fast(pixels[:1])
    kept = first.clone()
    assert torch.equal(fast(pixels), torch.cat([fast(each[None]) for each in pixels]))
    assert torch.equal(first, kept)


@needs_openvino
def test_calls_from_several_threads(sam):
    fast = OpenVinoEncoder(sam.image_encoder)
    pixels = torch.randn(4, 1, 3, 256, 256)
    with torch.no_grad():
        alone = [fast(each) for each in pixels]
    answers: dict[int, torch.Tensor] = {}

    def encode(number: int) -> None:
        with torch.no_grad():
            answers[number] = fast(pixels[number])

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(answers[number], alone[number]) for number in range(4))


@needs_openvino
def test_other_blocks_and_layers_are_refused(sam):
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x

    sam.image_encoder.blocks[1].attn.proj = Adapted(192, 192)
    fast = OpenVinoEncoder(sam.image_encoder)
    with pytest.raises(UnsupportedRecipeError, match="this is a Adapted"):
        fast(torch.randn(1, 3, 256, 256))
    sam.image_encoder.blocks[1].norm1 = nn.Identity()
    with pytest.raises(UnsupportedRecipeError, match="products='openvino' needs SAM's own blocks"):
        OpenVinoEncoder(sam.image_encoder)


@needs_openvino
@pytest.mark.parametrize(
    "name", ["fp32_openvino", "bf16_openvino", "int8_openvino", "fp32_int8_openvino"]
)
def test_masks_of_the_named_recipes_are_those_of_float32(name):
    if refusal(RECIPES[name], CPU) is not None:
        pytest.skip(str(refusal(RECIPES[name], CPU)))
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    image[:, 100:200, 100:300] = 200
    prompts = samfast.Prompts(boxes=torch.tensor([[100.0, 100.0, 300.0, 200.0]]))
    masks = []
    for recipe in ("fp32", name):
        sam = samfast.load("vit_xs", device="cpu", recipe=recipe)
        masks.append(sam.predict(sam.embed([image]), [prompts], multimask=False)[0].masks)
    exact, rounded = masks
    assert int(exact.sum()) > 15_000
    agreement = (exact & rounded).sum() / (exact | rounded).sum()
    assert agreement > 0.99
    assert "compiled by OpenVINO 20" in sam.describe()


def test_without_the_extra_the_error_names_it(sam, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install .samfast\[openvino\]"):
        OpenVinoEncoder(sam.image_encoder)
    monkeypatch.setattr("samfast.recipes.device_support.openvino_installed", lambda: False)
    with pytest.raises(UnsupportedRecipeError, match=r"pip install .samfast\[openvino\]"):
        apply(sam, RECIPES["fp32_openvino"], CPU)


def test_attention_and_compile_are_refused_beside_it():
    with pytest.raises(UnsupportedRecipeError, match="leave attention out"):
        Recipe(products="openvino", attention="onednn")
    with pytest.raises(UnsupportedRecipeError, match="take one of the two"):
        Recipe(products="openvino", compile="default")
    reason = refusal(RECIPES["fp32_openvino"], torch.device("mps"))
    assert reason is not None and "products='openvino'" in reason
