"""Rows measured in this process, of a model small enough for that."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from samfast import loading, recipes
from samfast.bench import ladder, measure_row, rivals
from samfast.bench.bench_job import blank
from samfast.bench.ceilings import encoder_flop
from samfast.bench.other_load import OtherLoad
from samfast.bench.rivals import RIVALS, Rival
from samfast.model.config import CONFIGS
from samfast.recipes import RECIPES
from tests.bench import in_process
from tests.bench.test_worker import JOB
from tests.model.tiny import TINY

CONTRACT = {
    "recipe",
    "model",
    "batch_size",
    "encoder_images_per_second",
    "images_per_second",
    "peak_memory_bytes",
    "compile_seconds",
    "miou",
    "max_relative_error",
    "weights",
    "prompts_per_image",
    "timed_region",
    "spread",
    "status",
    "environment",
}
MORE = {
    "accuracy",
    "agreement",
    "chosen_by",
    "definition",
    "doubts",
    "encoder_seconds",
    "first_call_seconds",
    "cache",
    "ceilings",
    "share_of_ceiling",
    "encoder_peak_memory_bytes",
    "ratio_to",
    "relative_errors",
    "reference_relative_error",
    "kernels",
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(CONFIGS, "tiny", TINY)


def run(recipes, batch_size=1, **options):
    return ladder.run(
        recipes,
        model="tiny",
        checkpoint="random",
        device="cpu",
        batch_size=batch_size,
        run_task=in_process.run_task,
        **{"repeats": 1, **options},
    )


def plain(model, state, device, dtype):
    """A rival that is samfast itself."""
    from samfast.model.sam import build

    sam = build(CONFIGS[model])
    sam.load_state_dict(state)
    return rivals.Loaded(sam.image_encoder.to(dtype))


def whole(model, state, device, dtype):
    """The same with something of a decoder."""

    def decode(features, points, labels):
        assert len(features) == len(points) == len(labels)
        assert all(point.dtype == dtype for point in points)
        return [features[0].sum() * point for point in points]

    return rivals.Loaded(plain(model, state, device, dtype).encoder, decode)


@pytest.fixture
def rival(monkeypatch):
    monkeypatch.setitem(RIVALS, "rival:plain", Rival(plain))
    monkeypatch.setitem(RIVALS, "rival:half", Rival(whole, torch.bfloat16))


def test_recipes_and_rivals_at_several_batch_sizes(rival):
    rows = run(["rival:plain", "rival:half", "fp32_sdpa", "bf16"], (2, 1), kernels=True)
    assert [(each["recipe"], each["batch_size"]) for each in rows] == [
        (name, n) for name in ("rival:plain", "rival:half", "fp32_sdpa", "bf16") for n in (2, 1)
    ]
    json.dumps(rows, allow_nan=False)
    for each in rows:
        assert set(each) == CONTRACT | MORE
        assert each["status"] == "ok", each["status"]
        assert (
            each["encoder_images_per_second"]
            == each["batch_size"] / each["encoder_seconds"]["median"]
        )
        assert each["encoder_seconds"]["p99"] >= each["encoder_seconds"]["median"]
        tflops = each["encoder_images_per_second"] * encoder_flop(TINY) / 1e12
        kind = "bf16" if each["recipe"] in ("rival:half", "bf16") else "fp32"
        share = tflops / each["ceilings"]["tflops"][kind]
        assert each["share_of_ceiling"] == pytest.approx(share)
        assert set(each["ratio_to"]) == {"plain", "half"}
        assert each["weights"] == "random"
        assert each["compile_seconds"] == 0
        assert each["cache"] is None and each["first_call_seconds"] > 0
        assert each["kernels"]["rows"]
        if each["recipe"].startswith("rival:"):
            assert (each["images_per_second"] is None) == (each["recipe"] == "rival:plain")
            assert each["definition"] is None
            assert set(each["relative_errors"]) == {"features"}
        else:
            assert each["images_per_second"] > 0
            assert each["definition"] == str(RECIPES[each["recipe"]])
            assert set(each["relative_errors"]) == {"features", "low_res", "iou"}
        assert each["max_relative_error"] == max(each["relative_errors"].values())
    by = {(each["recipe"], each["batch_size"]): each for each in rows}
    assert by["rival:plain", 1]["ratio_to"]["plain"] == 1
    ratio = (
        by["bf16", 2]["encoder_images_per_second"]
        / by["rival:half", 2]["encoder_images_per_second"]
    )
    assert by["bf16", 2]["ratio_to"]["half"] == pytest.approx(ratio)
    assert by["fp32_sdpa", 1]["reference_relative_error"] is None
    assert by["fp32_sdpa", 1]["max_relative_error"] < 1e-4
    # The plain model in bfloat16 is its own reference; at another batch size it may round
    # otherwise.
    assert by["bf16", 1]["max_relative_error"] == pytest.approx(
        by["bf16", 1]["reference_relative_error"]
    )
    assert by["rival:half", 1]["reference_relative_error"] == pytest.approx(
        by["rival:half", 1]["max_relative_error"]
    )


def test_an_exact_recipe_that_is_less_exact_than_the_plain_model_is_wrong(monkeypatch):
    apply = recipes.apply

    def rounded(sam, recipe, device, **options):
        runtime = apply(sam, recipe, device, **options)
        if recipe.attention == "sdpa":
            with torch.no_grad():
                for parameter in sam.image_encoder.parameters():
                    parameter.mul_(1.02)
        return runtime

    monkeypatch.setattr(loading, "apply", rounded)
    monkeypatch.setattr(measure_row, "measure", None)  # a call would fail
    (wrong,) = run(["bf16_sdpa"])
    assert wrong["status"].startswith("wrong: features' relative error")
    assert "2 times the error of the plain model in bfloat16" in wrong["status"]
    assert wrong["max_relative_error"] > 2 * wrong["reference_relative_error"] > 0
    assert wrong["images_per_second"] is None and wrong["share_of_ceiling"] is None
    assert wrong["first_call_seconds"] > 0


def test_a_rival_that_answers_otherwise_is_not_timed(monkeypatch):
    def other(model, state, device, dtype):
        return plain(model, {key: value * 1.5 for key, value in state.items()}, device, dtype)

    monkeypatch.setitem(RIVALS, "rival:other", Rival(other))
    monkeypatch.setattr(measure_row, "measure", None)
    (wrong,) = run(["rival:other"])
    assert wrong["status"].startswith("wrong: features' relative error")
    assert wrong["encoder_images_per_second"] is None


def test_a_rival_that_is_not_there(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    refused = run(["rival:transformers"], (1, 2))
    assert [each["batch_size"] for each in refused] == [1, 2]
    assert all(
        each["status"].startswith("refused: transformers cannot be imported") for each in refused
    )


def test_a_rival_is_compiled_for_each_batch_size(monkeypatch, rival):
    asked = []
    monkeypatch.setitem(RIVALS, "rival:fast", Rival(plain, torch.float32, "max-autotune"))
    monkeypatch.setattr(torch, "compile", lambda module, mode: asked.append(mode) or module)
    rows = run(["rival:plain", "rival:fast"], (1, 2))
    assert [each["status"] for each in rows] == ["ok"] * 4
    assert asked == ["max-autotune"] * 2


def test_a_blank_row_has_every_key():
    empty = blank(replace(JOB, batch_size=4), "failed: x")
    assert set(empty) == CONTRACT | MORE
    assert empty["prompts_per_image"] == (7 + 3 + 12 + 5) / 4


def test_rivals_are_named():
    assert set(rivals.RIVALS) == {
        "rival:segment-anything",
        "rival:segment-anything-fast",
        "rival:transformers",
        "rival:transformers-compiled",
    }
    assert RIVALS["rival:segment-anything-fast"].dtype == torch.bfloat16
    assert RIVALS["rival:segment-anything-fast"].compile == "max-autotune"
    assert RIVALS["rival:transformers-compiled"].compile == "max-autotune"


def doubted(part, whole, spread=0.1, cpus=0.0, gpu_share=None):
    others = {"cpus": cpus, "of_cpus": 4, "gpu_share": gpu_share}
    rates = {"encoder_images_per_second": part, "images_per_second": whole, "spread": spread}
    return measure_row.doubts({**rates, "environment": {"other_processes": others}})


def test_a_whole_above_its_part_is_doubted_beyond_the_spread():
    assert doubted(0.07, 0.16, spread=None) == [
        "0.16 images/s to masks are more than the encoder's 0.07"
    ]
    assert doubted(100.0, 112.0) != []  # 106.4 to 117.6, and 95 to 105
    assert doubted(100.0, 109.0) == []  # 103.6 to 114.5, and 95 to 105
    assert doubted(100.0, 90.0, spread=None) == doubted(100.0, None) == []


def test_other_processes_are_a_doubt():
    assert doubted(2.0, 1.0, cpus=0.39, gpu_share=0.09) == []
    assert doubted(2.0, 1.0, cpus=0.41, gpu_share=0.3) == [
        "other processes kept 0.4 of 4 CPUs busy",
        "other processes used the GPU 30% of the time",
    ]
    assert doubted(2.0, 1.0, cpus=None) == []  # unknown


def test_a_row_says_what_others_did_and_whether_it_is_one_run(monkeypatch):
    (one,) = run(["fp32_sdpa"], repeats=1)
    assert one["status"] == "ok" and one["spread"] is None
    others = one["environment"]["other_processes"]
    assert others["of_cpus"] >= 1 and others["gpu_share"] is None
    monkeypatch.setattr(OtherLoad, "__exit__", lambda self, *error: setattr(self, "cpus", 1e3))
    (two,) = run(["fp32_sdpa"], repeats=2)
    assert two["spread"] >= 0
    assert two["environment"]["other_processes"]["cpus"] == 1e3
    assert any("1000.0 of" in doubt for doubt in two["doubts"])
    json.dumps([one, two], allow_nan=False)


def test_stages_are_named_as_they_begin():
    seen: list[str] = []
    run(["fp32_sdpa"], on_stage=seen.append, kernels=True)
    assert seen == [
        "fp32's answers, to compare with",
        *(
            f"fp32_sdpa, batch 1: {stage}"
            for stage in (
                *("loading", "warming up", "parity", "encoder", "to masks"),
                *("kernels", "accuracy"),
            )
        ),
    ]
