"""`recipe="auto"`: the fastest recipe that is exact or proven, from tables made up for the
tests."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch

import samfast
from samfast.device.machine import AMD, INTEL, INTEL_AMX, OTHER_CPU
from samfast.errors import RecipeError
from samfast.recipes import RECIPES, Recipe, choose, evidence, refusal
from samfast.recipes.choose import FAST_BF16, MIN_COMPILE_BATCH, MIN_SPEEDUP, UNMEASURED
from samfast.recipes.evidence import MINIMUM_PHOTOS, Evidence, Speed, rounding

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CARD = "Card 9"
CHECKPOINT = "c0ffee"
STAMP = {"date": "2030-01-02T00:00:00+00:00", "cpu": "a processor", "threads": 2}

module = import_module("samfast.recipes.choose")  # the package's own `choose` is the function


def speed(
    recipe: str, images: float, *, gpu=CARD, capability="9.0", model="vit_b", batch=8, **rest
) -> Speed:
    defaults = {"peak_bytes": 1, "compile_seconds": 0.0, "environment": STAMP}
    definition = RECIPES[recipe].encoder_settings
    return Speed(recipe, definition, model, batch, gpu, capability, images, **(defaults | rest))


def proof(
    recipe: str, loss: float, *, photos=100, kind="miou", date="2030-02-03", checkpoint=CHECKPOINT
):
    how = rounding(RECIPES[recipe])
    return Evidence(
        checkpoint,
        "mine.pth",
        "vit_b",
        recipe,
        how,
        kind,
        loss,
        photos,
        "photos",
        {},
        {"date": date},
    )


ROWS = (
    speed("fp32", 50),
    speed("bf16_folded", 200),
    speed("fused", 400),
    speed("fp8", 500),
    speed("fused_int8", 450),
    speed("compile_default", 420, compile_seconds=90.0),
)


@pytest.fixture
def tables(monkeypatch):
    """Speeds, evidence, the card and what it refuses, as a test sets them."""
    state: dict[str, Any] = {
        "speeds": ROWS,
        "evidence": (),
        "card": (CARD, "9.0"),
        "refused": {},
    }

    def refusal(recipe: Recipe, device: torch.device) -> str | None:
        return next(
            (why for name, why in state["refused"].items() if RECIPES[name] == recipe), None
        )

    monkeypatch.setattr(evidence, "speeds", lambda: state["speeds"])
    monkeypatch.setattr(
        evidence,
        "evidence",
        lambda checkpoint: tuple(row for row in state["evidence"] if row.fingerprint == checkpoint),
    )
    monkeypatch.setattr(
        module, "_hardware", lambda device: state["card"] if device.type == "cuda" else (None, None)
    )
    monkeypatch.setattr(module, "refusal", refusal)
    monkeypatch.setattr(module, "native_bf16", lambda: True)
    monkeypatch.setattr(module, "cpu_kind", lambda: OTHER_CPU)  # as that of STAMP
    return state


def test_an_unknown_checkpoint_gets_the_fastest_unquantized_recipe_and_the_reason(tables):
    choice = choose(GPU)
    assert choice.name == "fused"
    assert not RECIPES[choice.name].lossy
    for said in (
        "400 images/s",
        CARD,
        "2030-01-02",
        "2.00 times as fast as bf16_folded",
        "batch 8",
    ):
        assert said in choice.reason
    assert "fp8 (1.25 times as fast), fused_int8 (1.12 times as fast)" in choice.reason
    assert "samfast calibrate CHECKPOINT IMAGES" in choice.reason


def test_evidence_counts_for_its_checkpoint_only(tables):
    tables["evidence"] = (proof("fp8", 0.2),)
    choice = choose(GPU, fingerprint=CHECKPOINT)
    assert choice.name == "fp8"
    assert "loses 0.20 points" in choice.reason and "2030-02-03" in choice.reason
    assert "1.25 times as fast as fused" in choice.reason
    assert choose(GPU, fingerprint="another").name == "fused"
    assert choose(GPU).name == "fused"


def test_random_weights_are_no_evidence(tables):
    tables["evidence"] = (proof("fp8", 0.0), proof("fused_int8", 0.0))
    choice = choose(GPU, fingerprint=CHECKPOINT, random=True)
    assert choice.name == "fused"
    assert "random weights" in choice.reason


@pytest.mark.parametrize(("budget", "name"), [(0.1, "fused"), (0.2, "fused_int8"), (0.5, "fp8")])
def test_the_budget_decides(tables, budget, name):
    tables["evidence"] = (proof("fp8", 0.5), proof("fused_int8", 0.2))
    choice = choose(GPU, fingerprint=CHECKPOINT, budget=budget)
    assert choice.name == name
    if name != "fp8":
        assert (
            "loses 0.50 points of mean IoU (as fp8 on 100 photos, photos, 2030-02-03), the budget "
            f"is {budget}" in (choice.reason)
        )


def test_too_few_photos_unlock_nothing(tables):
    tables["evidence"] = (proof("fp8", 0.0, photos=MINIMUM_PHOTOS - 1),)
    choice = choose(GPU, fingerprint=CHECKPOINT)
    assert choice.name == "fused"
    assert f"at least {MINIMUM_PHOTOS} are needed" in choice.reason
    tables["evidence"] = (proof("fp8", 0.0, photos=MINIMUM_PHOTOS),)
    assert choose(GPU, fingerprint=CHECKPOINT).name == "fp8"


def test_evidence_holds_for_whatever_rounds_the_same_and_for_nothing_else(tables):
    tables["evidence"] = (proof("int8", 0.0),)  # of every layer; fused_int8 rounds fewer
    assert choose(GPU, fingerprint=CHECKPOINT).name == "fused"
    same = replace(proof("int8", 0.0), rounding=rounding(RECIPES["fused_int8"]))
    tables["evidence"] = (same,)
    assert choose(GPU, fingerprint=CHECKPOINT).name == "fused_int8"


def test_scores_go_before_agreement_and_newer_before_older(tables):
    agreement = proof("fp8", 2.0, kind="agreement", date="2031-01-01")
    tables["evidence"] = (agreement, proof("fp8", 0.1))
    assert choose(GPU, fingerprint=CHECKPOINT).name == "fp8"
    tables["evidence"] = (proof("fp8", 0.1), proof("fp8", 0.9, date="2031-01-01"))
    assert choose(GPU, fingerprint=CHECKPOINT).name == "fused"
    tables["evidence"] = (agreement,)
    choice = choose(GPU, fingerprint=CHECKPOINT)
    assert choice.name == "fused"
    assert "may lose 2.00 points" in choice.reason


def test_rounding_for_next_to_nothing_is_not_worth_it(tables):
    tables["evidence"] = (proof("fp8", 0.0),)
    tables["speeds"] = (
        speed("fused", 100),
        speed("bf16_folded", 50),
        speed("fp8", 100 * MIN_SPEEDUP - 1),
    )
    assert choose(GPU, fingerprint=CHECKPOINT).name == "fused"
    tables["speeds"] = (*tables["speeds"][:2], speed("fp8", 100 * MIN_SPEEDUP + 1))
    assert choose(GPU, fingerprint=CHECKPOINT).name == "fp8"


def test_compiling_is_for_large_batches_and_only_where_it_is_faster(tables):
    faster = (
        speed("fused", 100),
        speed("bf16_folded", 50),
        speed("compile_default", 120, compile_seconds=90.0),
    )
    tables["speeds"] = faster
    choice = choose(GPU, batch_size=MIN_COMPILE_BATCH - 1)
    assert choice.name == "fused"
    assert "compiles at the first call, 90 s there" in choice.reason
    assert choose(GPU).name == "fused"
    assert choose(GPU, batch_size=MIN_COMPILE_BATCH).name == "compile_default"
    tables["speeds"] = (*faster[:2], speed("compile_default", 99))
    assert choose(GPU, batch_size=MIN_COMPILE_BATCH).name == "fused"


def test_what_the_device_refuses_is_passed_over_with_the_reason(tables):
    tables["evidence"] = (proof("fp8", 0.0),)
    tables["refused"] = {"fp8": "needs compute capability 8.9"}
    choice = choose(GPU, fingerprint=CHECKPOINT)
    assert choice.name == "fused"
    assert (
        "fp8 (1.25 times as fast) does not run here: needs compute capability 8.9" in choice.reason
    )


def test_weights_are_never_dropped_on_loading_whatever_was_measured(tables):
    tables["speeds"] = (*ROWS, speed("int8_2:4", 900), speed("2:4", 800))
    tables["evidence"] = (proof("int8_2:4", 0.0), proof("2:4", 0.0), proof("fp8", 0.0))
    choice = choose(GPU, fingerprint=CHECKPOINT, batch_size=MIN_COMPILE_BATCH)
    assert choice.name == "fp8"
    assert "needs weights that were pruned for it" in choice.reason


def test_float16_only_where_there_is_no_bfloat16(tables):
    tables["speeds"] = (speed("fp16_fused", 500), speed("fused", 400), speed("fp32_sdpa", 100))
    assert choose(GPU).name == "fused"
    bf16 = [name for name, recipe in RECIPES.items() if recipe.dtype == torch.bfloat16]
    tables["refused"] = dict.fromkeys(bf16, "no bfloat16")
    assert choose(GPU).name == "fp16_fused"


def test_speeds_of_unlike_conditions_are_not_compared(tables):
    """At batch 1 another recipe is the fastest than at batch 32; each request takes the nearest
    one's order."""
    tables["speeds"] = (
        *(speed("fused", 90, batch=1), speed("bf16_triton", 100, batch=1)),
        *(speed("fused", 500, batch=32), speed("bf16_triton", 400, batch=32)),
    )
    assert choose(GPU, batch_size=2).name == "bf16_triton"
    assert choose(GPU, batch_size=24).name == "fused"
    # Alone at batch 64, slower than others ever were: that is no comparison.
    tables["speeds"] += (speed("fp32", 9, batch=64),)
    assert choose(GPU, batch_size=64).name == "fused"
    tables["speeds"] = (speed("fp32", 9, batch=64),)
    assert choose(GPU).name == "fp32"


def test_the_newest_row_of_a_recipe_counts(tables):
    newer = STAMP | {"date": "2031-01-01"}
    tables["speeds"] = (
        *(
            speed("bf16_folded", 50, environment=newer),
            speed("fused", 100),
            speed("bf16_folded", 300),
        ),
    )
    choice = choose(GPU)
    assert choice.name == "fused"
    assert "2.00 times as fast as bf16_folded" in choice.reason


def test_a_gpu_without_rows_takes_the_order_of_the_nearest_capability_and_says_so(tables):
    tables["card"] = ("Card 8", "8.0")
    tables["speeds"] = (
        *(speed("fused", 400), speed("bf16_folded", 300)),
        *(
            speed(name, n, gpu="Old", capability="7.5")
            for name, n in (("fp16_sdpa", 90), ("fp32", 9))
        ),
        *(
            speed(name, n, gpu="Who", capability=None)
            for name, n in (("fp32_sdpa", 9), ("fp32", 8))
        ),
    )
    choice = choose(GPU)
    assert choice.name == "fused"
    assert (
        "nothing was measured on this Card 8 (compute capability 8.0), whose order may differ"
        in choice.reason
    )
    assert CARD in choice.reason
    tables["card"] = ("Who", "8.0")
    assert choose(GPU).name == "fp32_sdpa"


def test_an_unmeasured_model_takes_the_nearest_one_s_order_and_says_so(tables):
    tables["speeds"] = (
        *(speed("fused", 400), speed("bf16_folded", 300)),
        *(speed("fused", 40, model="vit_h"), speed("bf16_folded", 60, model="vit_h")),
    )
    assert choose(GPU, model="vit_b").name == "fused"
    assert "was not measured there" not in choose(GPU, model="vit_b").reason
    choice = choose(GPU, model="vit_l")
    assert "vit_l was not measured there" in choice.reason
    assert choose(GPU, model="vit_h").name == "bf16_folded"
    assert choose(GPU, model="somebody's").name == "fused"


def test_cpus_and_gpus_do_not_stand_for_each_other(tables, monkeypatch):
    choice = choose(CPU)
    assert choice.name == UNMEASURED[1][0]
    assert "no speed measured on a CPU" in choice.reason
    on_cpu = (("bf16_blocked", 2.0), ("fp32_blocked", 1.0), ("fp32", 0.5))
    rows = tuple(speed(name, n, gpu=None, capability=None, batch=1) for name, n in on_cpu)
    tables["speeds"] = rows
    assert choose(GPU).name == UNMEASURED[0][0]
    assert choose(CPU).name == "bf16_blocked"
    assert "a processor" in choose(CPU).reason
    monkeypatch.setattr(module, "native_bf16", lambda: False)
    assert choose(CPU).name == "fp32_blocked"
    tables["speeds"] = ()
    assert choose(CPU).name == "fp32_blocked"


@pytest.mark.parametrize(("installed", "name"), [(True, "bf16_openvino"), (False, "bf16_onednn")])
def test_a_cpu_takes_what_an_extra_brings_only_where_it_is_installed(
    tables, monkeypatch, installed, name
):
    monkeypatch.setattr(module, "refusal", refusal)
    support = import_module("samfast.recipes.device_support")
    monkeypatch.setattr(support, "openvino_installed", lambda: installed)
    monkeypatch.setattr(support.onednn_products, "available", lambda: True)
    monkeypatch.setattr(support.onednn_products, "takes_bf16", lambda: True)
    speeds = {"fp32": 1, "bf16_onednn": 5, "bf16_openvino": 7}
    tables["speeds"] = tuple(speed(each, n, gpu=None, batch=1) for each, n in speeds.items())
    assert choose(CPU).name == name


@pytest.mark.parametrize("budget", [-0.1, float("nan"), "much", True])
def test_a_budget_that_is_none(budget):
    with pytest.raises(RecipeError, match="points of mean IoU"):
        choose(CPU, budget=budget)


def on_cpus(**images: dict[str, float]) -> tuple[Speed, ...]:
    """Rows of several CPUs: by its name, recipes with their images a second."""
    return tuple(
        speed(
            recipe,
            rate,
            gpu=None,
            capability=None,
            batch=1,
            environment=STAMP | {"cpu": cpu, "date": f"2030-01-0{1 + day}"},
        )
        for day, (cpu, rates) in enumerate(images.items())
        for recipe, rate in rates.items()
    )


@pytest.mark.parametrize(
    ("kind", "name", "measured"),
    [
        (INTEL, "fp32_openvino", True),
        (AMD, "bf16_openvino", True),
        # Of these nothing was measured: the nearest stands for them.
        (INTEL_AMX, "bf16_openvino", False),
        (OTHER_CPU, "fp32_openvino", False),
    ],
)
def test_cpus_of_different_kinds_do_not_stand_for_each_other(
    tables, monkeypatch, kind, name, measured
):
    monkeypatch.setattr(module, "cpu_kind", lambda: kind)
    tables["speeds"] = on_cpus(
        Intel={"fp32_blocked": 1.5, "fp32_openvino": 1.8, "bf16_openvino": 1.3},
        AMD={"fp32_blocked": 1.5, "fp32_openvino": 3.4, "bf16_openvino": 5.6},
    )
    choice = choose(CPU)
    assert choice.name == name
    assert (f"a CPU of this kind ({kind})" in choice.reason) != measured


@pytest.mark.parametrize("kind", [INTEL, INTEL_AMX, AMD, OTHER_CPU])
@pytest.mark.parametrize("native", [True, False])
def test_the_packaged_tables_choose_what_runs(monkeypatch, kind, native):
    monkeypatch.setattr(module, "native_bf16", lambda: native)
    monkeypatch.setattr(module, "cpu_kind", lambda: kind)
    for model in ("vit_xs", "vit_b"):
        choice = choose(CPU, model=model)
        in_bf16 = RECIPES[choice.name].dtype == torch.bfloat16
        assert in_bf16 == (native and kind in FAST_BF16)
        assert not RECIPES[choice.name].lossy


def test_load_chooses_for_its_checkpoint_and_describes_why(monkeypatch):
    asked = []

    def spy(device, **rest):
        asked.append((device, rest))
        return choose(device, **rest)

    monkeypatch.setattr(samfast.loading, "choose", spy)
    sam = samfast.load("vit_xs", device="cpu", accuracy_budget=0.7)
    samfast.load("vit_xs", device="cpu", checkpoint="random", batch_size=3)
    (device, first), (_, second) = asked
    assert device == CPU
    assert first["fingerprint"] in {row.fingerprint for row in evidence.packaged_evidence()}
    assert (first["model"], first["budget"], first["random"]) == ("vit_xs", 0.7, False)
    assert (second["random"], second["batch_size"]) == (True, 3)
    assert second["fingerprint"] != first["fingerprint"]
    assert choose(device, **first).reason in sam.describe()
    with pytest.raises(RecipeError, match="accuracy budget"):
        samfast.load("vit_xs", device="cpu", accuracy_budget=-1)


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_untested_devices_take_plain_recipes(device):
    choice = choose(torch.device(device))
    recipe = RECIPES[choice.name]
    assert "not tested" in choice.reason
    assert recipe.dtype == torch.float32
    assert refusal(recipe, torch.device(device)) is None
    for name in ("fused", "int8", "compile", "2:4", "fp32_fused"):
        assert "takes the plain recipes" in str(refusal(RECIPES[name], torch.device(device)))
