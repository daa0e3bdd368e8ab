"""Quantized and pruned checkpoints as files: the same numbers back, and refusals of what
contradicts them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import samfast
from samfast.checkpoints import quantized_checkpoint
from samfast.checkpoints.state_dict import load_checkpoint
from samfast.device import onednn_products
from samfast.errors import CheckpointError, OutputError, RecipeError, UnsupportedRecipeError
from samfast.linear import Int8Linear, QuantizedLinear
from samfast.linear.encoder_layers import encoder_layers
from samfast.linear.quantize_layers import quantize_layers
from samfast.linear.sparsify_layers import prune_by_magnitude
from samfast.model.config import CONFIGS
from samfast.recipes import Recipe, apply
from tests.linear.pattern_24 import satisfies_24
from tests.model import tiny
from tests.model.tiny import TINY

INT8 = Recipe(attention="sdpa", quantize="int8", quantized_layers=("qkv", "lin1", "lin2"))
FP8 = Recipe(dtype=torch.bfloat16, quantize="fp8")
PRUNED = Recipe(dtype=torch.bfloat16, sparsify="2:4", sparse_layers=("lin1", "lin2"))
BOTH = replace(PRUNED, quantize="int8")


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(CONFIGS, "tiny", TINY)


@pytest.fixture
def write(tmp_path):
    def save(recipe, name="file.safetensors"):
        sam = random_sam()
        if recipe.sparsify:
            prune_by_magnitude(sam, recipe.sparse_layers)
        engine = tiny.fast(sam, Recipe())
        path = tmp_path / name
        quantized_checkpoint.save(
            sam,
            recipe.layer_formats,
            path,
            config=TINY,
            fingerprint=engine.fingerprint,
            source="tiny.pth",
        )
        return path, sam, engine.fingerprint

    return save


def random_sam():
    """The same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny.random_sam()


def load(path, recipe="auto", **options):
    return samfast.load(None, checkpoint=path, device="cpu", recipe=recipe, **options)


def pixels():
    return torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def rewritten(path, tensors=None, **header):
    with safe_open(path, framework="pt") as file:
        old = dict(file.metadata())
    both = {key: value for key, value in (old | header).items() if value is not None}
    save_file(tensors or load_file(path), path, both)
    return path


@torch.no_grad()
def test_int8_comes_back_bit_for_bit(write):
    path, plain, fingerprint = write(INT8)
    quantize_layers(plain, INT8.layer_formats)
    sam = load(path, INT8)
    for each, other in zip(encoder_layers(sam.model), encoder_layers(plain), strict=True):
        assert (
            type(each.module)
            is type(other.module)
            is (nn.Linear if each.layer == "proj" else Int8Linear)
        )
        for (name, value), (_, want) in zip(
            each.module.state_dict().items(), other.module.state_dict().items(), strict=True
        ):
            assert value.dtype == want.dtype and torch.equal(value, want), name
    samfast.recipes.use_attention(plain, "sdpa")
    assert torch.equal(sam.model.image_encoder(pixels()), plain.image_encoder(pixels()))
    assert sam.fingerprint == fingerprint


@torch.no_grad()
def test_auto_takes_what_the_file_has(write):
    path, _, fingerprint = write(INT8)
    sam = load(path)
    assert (sam.recipe.quantize, sam.recipe.quantized_layers) == ("int8", INT8.quantized_layers)
    assert "the file's layers are int8 (qkv, lin1, lin2)" in sam.describe()
    assert sam.name == "tiny" and sam.fingerprint == fingerprint
    plain = tiny.fast(random_sam(), Recipe())
    assert sam.describe().splitlines()[0] == plain.describe().splitlines()[0]  # as many parameters
    for place in encoder_layers(sam.model, INT8.quantized_layers):
        assert isinstance(place.module, QuantizedLinear)
        assert place.module.weight_scale.dtype == torch.float32
        assert place.module.dtype == place.module.bias.dtype == sam.recipe.dtype


def test_a_cpu_without_vnni_takes_torch_s_products(write, monkeypatch):
    path, _, _ = write(INT8)
    monkeypatch.setattr(onednn_products, "exact_int8", lambda: False)
    sam = load(path)
    assert (sam.recipe.products, sam.recipe.quantize) == ("torch", "int8")
    assert "does not take on this CPU" in sam.describe()


def test_the_embeddings_of_the_source_are_taken(write):
    path, _, fingerprint = write(INT8)
    plain = tiny.fast(random_sam(), Recipe())
    assert plain.fingerprint == fingerprint
    other = load(path, image_size=64)
    assert other.fingerprint != fingerprint


def test_the_file_is_metas_keys_and_a_header(write):
    path, plain, fingerprint = write(BOTH)
    tensors = load_file(path)
    keys = set(plain.state_dict())
    weights = {f"{place.name}.weight" for place in encoder_layers(plain)}
    assert set(tensors) == keys | {f"{key}_scale" for key in weights}
    assert {tensors[key].dtype for key in weights} == {torch.int8}
    for key in keys - weights:
        assert torch.equal(tensors[key], plain.state_dict()[key]), key
    for place in encoder_layers(plain, PRUNED.sparse_layers):
        assert satisfies_24(tensors[f"{place.name}.weight"])
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert (header["format"], header["version"], header["model"]) == (
        "samfast-quantized",
        "1",
        "tiny",
    )
    assert json.loads(header["config"])["embed_dim"] == 32
    assert json.loads(header["recipe"])["quantize"] == "int8"
    assert (header["fingerprint"], header["source"]) == (fingerprint, "tiny.pth")


def test_fp8_is_stored_as_it_is_and_refused_on_a_cpu(write):
    path, plain, _ = write(FP8)
    tensors = load_file(path)
    assert {tensors[f"{place.name}.weight"].dtype for place in encoder_layers(plain)} == {
        torch.float8_e4m3fn
    }
    with pytest.raises(UnsupportedRecipeError, match="fp8"):
        load(path)


@torch.no_grad()
def test_pruned_weights_run_with_their_zeros_where_there_are_no_sparse_products(write):
    path, plain, fingerprint = write(PRUNED)
    sam = load(path)
    assert sam.recipe.sparsify is None and "their zeros are multiplied" in sam.describe()
    assert load(path, "fp32").fingerprint == fingerprint
    assert torch.equal(
        load(path, "fp32").model.image_encoder(pixels()), plain.image_encoder(pixels())
    )
    assert torch.equal(
        load_checkpoint(path)[1]["image_encoder.pos_embed"], plain.image_encoder.pos_embed
    )
    both, _, _ = write(BOTH, "both.safetensors")
    assert load(both).recipe.quantize == "int8" and load(both).recipe.sparsify is None


@pytest.mark.parametrize(
    ("recipe", "asked", "says"),
    [
        (INT8, Recipe(), "int8 (qkv, lin1, lin2), but the recipe asks for neither"),
        (INT8, replace(INT8, quantized_layers=("lin1",)), "asks for int8 (lin1)"),
        (INT8, replace(FP8, quantized_layers=INT8.quantized_layers), "asks for fp8"),
        (
            INT8,
            replace(INT8, dtype=torch.bfloat16, sparsify="2:4"),
            "and 2:4 (qkv, proj, lin1, lin2)",
        ),
        (PRUNED, replace(PRUNED, sparse_layers=("qkv", "lin1")), "2:4 (lin1, lin2), but"),
        (PRUNED, INT8, "asks for int8"),
        (BOTH, PRUNED, "asks for 2:4 (lin1, lin2)"),
    ],
)
def test_a_recipe_that_contradicts_the_file_is_refused(write, recipe, asked, says):
    path, _, _ = write(recipe)
    with pytest.raises(CheckpointError, match="recipe='auto'") as caught:
        load(path, asked)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_the_plain_loader_names_the_loader_of_quantized_files(write):
    path, _, _ = write(INT8)
    with pytest.raises(CheckpointError, match=r"int8.*samfast\.load"):
        load_checkpoint(path)


def test_a_file_of_another_model_or_a_damaged_one_is_refused(write, tmp_path):
    path, _, _ = write(INT8)
    with pytest.raises(CheckpointError, match="holds tiny, not vit_b"):
        samfast.load("vit_b", checkpoint=path, device="cpu")
    key = "image_encoder.blocks.1.mlp.lin2.weight"
    for change, says in (
        (lambda t: t.pop(f"{key}_scale"), "int8"),
        (lambda t: t.update({key: t[key][:, :8].contiguous()}), "lin2.weight is"),
        (lambda t: t.update({f"{key}_scale": t[f"{key}_scale"][:5].clone()}), "scale a row"),
        (lambda t: t.update({f"{key}_scale": t[f"{key}_scale"] / 0}), "NaN or infinite"),
        (lambda t: t.update({key: t[key].to(torch.float8_e4m3fn)}), "not int8 weights"),
        (lambda t: t.pop("image_encoder.pos_embed"), "lacks 1"),
    ):
        path, _, _ = write(INT8)
        tensors = load_file(path)
        change(tensors)
        with pytest.raises(CheckpointError) as caught:
            load(rewritten(path, tensors))
        assert says in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"version": "7"}, "version 7"),
        ({"recipe": "{"}, "header is damaged"),
        ({"recipe": None}, "header is damaged"),
        ({"recipe": '{"quantize": "int8"}'}, "header is damaged"),
        ({"fingerprint": None}, "header is damaged"),
    ],
)
def test_a_header_that_says_nonsense_is_refused(write, header, says):
    path, _, _ = write(INT8)
    with pytest.raises(CheckpointError, match=says):
        load(rewritten(path, **header))


def test_a_header_of_other_layers_is_refused(write):
    path, _, _ = write(INT8)
    fields = asdict(replace(INT8, quantized_layers=("qkv", "lin1")).layer_formats)
    with pytest.raises(CheckpointError, match=r"disagree on whether .*lin2"):
        load(rewritten(path, recipe=json.dumps(fields)))


def test_a_plain_file_is_left_to_the_plain_loader(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors", {"format": "pt"})
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    assert quantized_checkpoint.find(tmp_path / "plain.safetensors") is None
    assert quantized_checkpoint.find(tmp_path / "text.safetensors") is None
    torch.save({}, tmp_path / "zip.pth")
    assert quantized_checkpoint.find(tmp_path / "zip.pth") is None


def test_saving_refuses_what_it_should(tmp_path, write):
    sam, rest = random_sam(), {"config": TINY, "fingerprint": "f", "source": "s"}
    with pytest.raises(RecipeError, match="nothing to save"):
        quantized_checkpoint.save(sam, Recipe().layer_formats, tmp_path / "a.safetensors", **rest)
    with pytest.raises(UnsupportedRecipeError, match=r"lin1.*samfast quantize"):
        quantized_checkpoint.save(sam, PRUNED.layer_formats, tmp_path / "a.safetensors", **rest)
    with pytest.raises(OutputError, match="no folder"):
        quantized_checkpoint.save(
            sam, INT8.layer_formats, tmp_path / "none" / "a.safetensors", **rest
        )
    assert list(tmp_path.iterdir()) == []


def test_random_weights_may_be_pruned_by_magnitude_on_the_way(monkeypatch):
    from samfast import loading

    seen: dict = {}
    runtime = apply(random_sam(), Recipe(), torch.device("cpu"))
    monkeypatch.setattr(
        loading, "apply", lambda sam, *_, **__: seen.setdefault("sam", sam) and runtime
    )
    sam = samfast.load("tiny", checkpoint="random", device="cpu", recipe=PRUNED)
    for place in encoder_layers(seen["sam"]):
        assert satisfies_24(place.module.weight) == (place.layer in PRUNED.sparse_layers)
    dense = samfast.load("tiny", checkpoint="random", device="cpu", recipe="fp32")
    assert sam.fingerprint == dense.fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_does_not_grow_and_keeps_every_value(write, tmp_path, dtype):
    sam = random_sam()
    sam.load_state_dict({key: value.to(dtype) for key, value in sam.state_dict().items()})
    plain, path = tmp_path / "plain.safetensors", tmp_path / "int8.safetensors"
    save_file({key: value.to(dtype) for key, value in sam.state_dict().items()}, plain)
    quantized_checkpoint.save(
        sam, INT8.layer_formats, path, config=TINY, fingerprint="ab" * 32, source="tiny.pth"
    )
    assert path.stat().st_size < plain.stat().st_size
    file = quantized_checkpoint.find(path)
    assert file is not None
    _, state, quantized = file.read("tiny")
    wanted = sam.state_dict()
    for key, value in state.items():
        if key.removesuffix(".weight") not in quantized:
            assert value.dtype == torch.float32 and torch.equal(value, wanted[key]), key


def test_values_that_16_bits_do_not_hold_stay_in_float32(write):
    path, sam, _ = write(INT8)
    stored = load_file(path)
    for key, value in sam.state_dict().items():
        if stored[key].dtype == torch.float32:
            assert torch.equal(stored[key], value), key
        elif stored[key].is_floating_point():
            assert torch.equal(stored[key].float(), value), key
    assert stored["mask_decoder.iou_token.weight"].dtype == torch.float32
