"""Recipes: data, refused where they cannot run, applied field by field."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from samfast import attention
from samfast.device import onednn_products
from samfast.device.machine import AMD
from samfast.errors import RecipeError, UnsupportedRecipeError
from samfast.linear.encoder_layers import LAYERS
from samfast.recipes import RECIPES, Recipe, apply, choose, get, refusal
from samfast.recipes.precision import KEPT
from tests.model.tiny import applied, random_sam

CPU = torch.device("cpu")


def test_a_recipe_is_frozen_and_every_field_has_a_default():
    with pytest.raises(FrozenInstanceError):
        Recipe().dtype = torch.float16  # type: ignore[misc]
    steps = {field.name: field.default for field in fields(Recipe)}
    assert (steps.pop("dtype"), steps.pop("attention"), steps.pop("prompts")) == (
        torch.float32,
        "reference",
        "looped",
    )
    assert steps.pop("quantized_layers") == steps.pop("sparse_layers") == LAYERS
    assert steps.pop("products") == "torch"
    assert not any(steps.values())
    assert Recipe() == RECIPES["fp32"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": torch.float64},
        {"attention": "flash9"},
        {"prompts": "sorted"},
        {"quantize": "int3"},
        {"sparsify": "9:1"},
        {"compile": "slowly"},
        {"products": "mkl"},
    ],
)
def test_an_unknown_value_names_the_field_and_what_there_is(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))) as caught:
        Recipe(**wrong)
    assert "there are" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quantized_layers": ("qkv",)}, "quantized_layers=.* needs quantize"),
        ({"sparse_layers": ("lin1",)}, "sparse_layers=.* needs sparsify"),
        ({"quantize": "int8", "quantized_layers": ()}, "give some of qkv"),
        ({"quantize": "int8", "quantized_layers": "qkv"}, "give some of qkv"),
        (
            {"dtype": torch.bfloat16, "quantize": "fp8", "sparsify": "2:4"},
            r"fp8 and 2:4 in one layer \(lin1, lin2, proj, qkv\); take int8",
        ),
    ],
)
def test_a_field_that_needs_or_excludes_another_says_so_when_it_is_built(wrong, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(**wrong)


def test_the_encoder_s_settings_are_json_and_leave_prompts_out():
    fused = RECIPES["fused"]
    settings = fused.encoder_settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings == replace(fused, prompts="looped").encoder_settings
    different = {"dtype": torch.float16, "attention": "sdpa", "graph": False, "fuse": False}
    different |= {"compile": "default", "quantize": "int8"}
    for field, value in different.items():
        assert replace(fused, **{field: value}).encoder_settings != settings


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(RecipeError, match="bf16_sdpa"):
        get("fast")


def test_the_waterfall_goes_on_from_nested():
    nested = RECIPES["nested"]
    assert nested == replace(RECIPES["triton"], prompts="nested")
    assert RECIPES["int8"] == replace(nested, quantize="int8")
    assert RECIPES["2:4"] == replace(nested, sparsify="2:4")
    assert {RECIPES[name].prompts for name in ("fused", "fp8", "fp16_fused", "fused_int8")} == {
        "packed"
    }
    assert (
        list(RECIPES).index("triton") + 1
        == list(RECIPES).index("nested")
        == list(RECIPES).index("int8") - 1
    )


def test_half_precision_is_refused_on_a_cpu_with_the_remedy():
    half = RECIPES["fp16_sdpa"]
    assert "needs a GPU" in str(refusal(half, CPU))
    with pytest.raises(UnsupportedRecipeError, match="take a bf16 or fp32 recipe"):
        apply(random_sam(), half, CPU)


def test_precision_keeps_what_would_move_clicks_and_the_end_of_the_iou_head():
    sam = applied(random_sam(), RECIPES["bf16_sdpa"])
    end = set(sam.mask_decoder.iou_prediction_head.layers[-1].parameters())
    assert {p.dtype for p in end} == {torch.float32}
    assert {p.dtype for p in set(sam.parameters()) - end} == {torch.bfloat16}
    buffers = dict(sam.named_buffers())
    assert set(KEPT) <= set(buffers)
    assert {buffers[name].dtype for name in KEPT} == {torch.float32}


@pytest.mark.parametrize("name", attention.IMPLEMENTATIONS)
def test_every_block_gets_the_attention_that_was_asked_for(name):
    recipe = replace(Recipe(), attention=name)
    if refusal(recipe, CPU) is not None:
        pytest.skip(str(refusal(recipe, CPU)))
    sam = applied(random_sam(), recipe)
    assert all(block.attn.attend is attention.get(name) for block in sam.image_encoder.blocks)


@pytest.mark.parametrize(("native", "name"), [(True, "bf16_onednn"), (False, "fp32_onednn")])
def test_auto_gives_a_recipe_that_runs_and_a_reason(monkeypatch, native, name):
    chooser = import_module("samfast.recipes.choose")
    monkeypatch.setattr(chooser, "native_bf16", lambda: native)
    monkeypatch.setattr(chooser, "cpu_kind", lambda: AMD)
    monkeypatch.setattr(onednn_products, "takes_bf16", lambda: True)  # as where it is native
    support = import_module("samfast.recipes.device_support")
    monkeypatch.setattr(support, "openvino_installed", lambda: False)  # not everybody has the extra
    choice = choose(CPU)
    assert choice.name == name
    assert refusal(get(choice.name), CPU) is None
    assert len(choice.reason) > 20


def test_auto_on_a_cpu_stays_within_its_accuracy_budget():
    """0.1 points of mean IoU between bfloat16 and float32, in the committed results of the packaged
    model."""
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    exact, rounded = (
        json.loads((folder / f"vit_xs_val_cpu_{kind}.json").read_text())
        for kind in ("fp32", "bf16")
    )
    assert exact["masks"] == rounded["masks"] > 1000
    for prompt, score in (("point", "miou"), ("point", "miou_oracle"), ("box", "miou")):
        assert abs(exact[prompt][score] - rounded[prompt][score]) < 0.001
