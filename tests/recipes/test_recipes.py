"""Recipes: data, refused where they cannot run, applied field by field."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from samfast import attention
from samfast.errors import RecipeError, UnsupportedRecipeError
from samfast.recipes import RECIPES, Recipe, apply, choose, get, refusal
from samfast.recipes.precision import KEPT
from samfast.recipes.recipe import LAYERS
from tests.model.tiny import random_sam

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
    ],
)
def test_an_unknown_value_names_the_field_and_what_there_is(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))) as caught:
        Recipe(**wrong)
    assert "there are" in str(caught.value)


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


def test_precision_keeps_what_would_move_clicks():
    sam = apply(random_sam(), RECIPES["bf16_sdpa"], CPU)
    assert {p.dtype for p in sam.parameters()} == {torch.bfloat16}
    buffers = dict(sam.named_buffers())
    assert set(KEPT) <= set(buffers)
    assert {buffers[name].dtype for name in KEPT} == {torch.float32}


@pytest.mark.parametrize("name", attention.IMPLEMENTATIONS)
def test_every_block_gets_the_attention_that_was_asked_for(name):
    recipe = replace(Recipe(), attention=name)
    if refusal(recipe, CPU) is not None:
        pytest.skip(str(refusal(recipe, CPU)))
    sam = apply(random_sam(), recipe, CPU)
    assert all(block.attn.attend is attention.get(name) for block in sam.image_encoder.blocks)


@pytest.mark.parametrize(("native", "name"), [(True, "bf16_blocked"), (False, "fp32_blocked")])
def test_auto_gives_a_recipe_that_runs_and_a_reason(monkeypatch, native, name):
    monkeypatch.setattr(import_module("samfast.recipes.choose"), "native_bf16", lambda: native)
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
