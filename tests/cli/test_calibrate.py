"""`samfast calibrate`: arguments, saved rows and output. tests/bench tests the figures."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import samfast
from samfast.bench import agreement
from samfast.checkpoints import quantized_checkpoint
from samfast.cli import calibrate_command, calibration
from samfast.errors import DatasetError
from samfast.recipes import RECIPES, Recipe, evidence
from samfast.recipes.choose import BUDGET
from samfast.recipes.evidence import MINIMUM_PHOTOS, rounding

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path / "cache"


def kind(loss=0.1, uncertainty=0.05):
    return {"agreement": 0.99, "loss": loss, "uncertainty": uncertainty, "disagreement": 0.5}


def figures(loss=0.2, photos=MINIMUM_PHOTOS):
    return {
        "loss_points": loss,
        "photos": photos,
        "objects": 7 * photos,
        "agreement_miou": 0.985,
        "yardstick_miou": 0.99,
        "click": kind(),
        "box": kind(0.05),
    }


@pytest.fixture
def measuring(monkeypatch):
    """Instead of measuring: what was asked for, and the figures to answer with, by recipe."""
    calls: dict[str, Any] = {"figures": {}, "errors": []}

    def measure(load, photos, recipes, plain, *, progress, on_error, on_refusal):
        load(Recipe(attention=plain))
        calls.update(photos=photos, recipes=recipes, plain=plain)
        for message in calls["errors"]:
            on_error(message)
        progress(agreement.steps(len(photos), recipes))
        return {name: calls["figures"].get(name, figures()) for name in recipes}

    def know(self, checkpoint, model, device):
        self.checkpoint = checkpoint

    def load(self, recipe):
        self.name, self.fingerprint = "vit_b", "ab" * 32

    monkeypatch.setattr(agreement, "measure", measure)
    monkeypatch.setattr(calibration.Loader, "__init__", know)
    monkeypatch.setattr(calibration.Loader, "__call__", load)
    return calls


def test_rows_are_kept_and_unlock_within_the_budget(run, photos, measuring):
    measuring["figures"] = {"int8": figures(0.25), "fused_int8": figures(0.5)}
    code, out, err = run(
        "calibrate", "mine.pth", photos, "--recipes", "int8", "fused_int8", "--device", "cpu"
    )
    assert (code, err) == (0, "")
    kept = {row.recipe: row for row in evidence.calibrated("ab" * 32)}
    assert {name: row.loss_points for name, row in kept.items()} == {
        "int8": 0.25,
        "fused_int8": 0.5,
    }
    one = kept["int8"]
    assert (one.kind, one.photos, one.checkpoint, one.model) == (
        "agreement",
        MINIMUM_PHOTOS,
        "mine.pth",
        "vit_b",
    )
    assert one.rounding == rounding(RECIPES["int8"])
    assert one.details["agreement_miou"] == 0.985
    assert one.environment["samfast"] == samfast.__version__
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["int8"].endswith("unlocked")
    assert "may lose 0.50 points, the budget is 0.3" in lines["fused_int8"]
    assert "auto now takes" in out and one.source in out


def test_json_on_stdout_is_pure_and_says_what_the_table_says(run, photos, measuring):
    code, out, err = run(
        "calibrate", "vit_b", photos, "--recipes", "int8", "--budget", "0.1", "--json", "-"
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    (row,) = report["rows"]
    assert row["recipe"] == "int8" and not row["unlocked"]
    assert row["why"] == "may lose 0.20 points, the budget is 0.1"
    assert report["budget"] == 0.1 and report["saved"].endswith("ab.json")
    assert report["auto"]["recipe"] in RECIPES and report["auto"]["why"]
    assert {
        "model",
        "fingerprint",
        "environment",
        "failed",
        "checkpoint",
        "device",
    } <= report.keys()
    assert [path.name for path in measuring["photos"]] == ["a.png", "b.png", "c.png"]


def test_too_few_photos_are_measured_but_unlock_nothing(run, photos, measuring):
    measuring["figures"] = {"int8": figures(0.0, photos=MINIMUM_PHOTOS - 1)}
    code, out, _ = run("calibrate", "mine.pth", photos, "--recipes", "int8")
    assert code == 0
    assert f"at least {MINIMUM_PHOTOS} are needed" in out and "unlocked" not in out
    assert "kept in" not in out
    assert evidence.calibrated("ab" * 32) == ()


def test_too_few_photos_do_not_replace_what_more_have_shown(run, photos, measuring):
    argv = ("calibrate", "mine.pth", photos, "--recipes", "int8")
    measuring["figures"] = {"int8": figures(0.25)}
    assert run(*argv)[0] == 0
    measuring["figures"] = {"int8": figures(0.0, photos=MINIMUM_PHOTOS - 1)}
    code, out, _ = run(*argv, "--json", "-")
    assert (code, json.loads(out)["saved"]) == (0, None)
    (row,) = evidence.calibrated("ab" * 32)
    assert (row.photos, row.loss_points) == (MINIMUM_PHOTOS, 0.25)


def test_the_budget_in_the_help_is_that_of_auto():
    assert calibrate_command.BUDGET == BUDGET


def test_what_is_unlocked_is_what_auto_takes(run, photos, measuring, monkeypatch):
    speeds = [
        evidence.Speed(
            name, str(RECIPES[name]), "vit_b", 1, None, None, n, None, 0.0, {"date": "2030"}
        )
        for name, n in (("fp32_blocked", 1.0), ("fp32", 0.5), ("int8", 3.0))
    ]
    module = import_module("samfast.recipes.choose")
    monkeypatch.setattr(evidence, "speeds", lambda: tuple(speeds))
    monkeypatch.setattr(module, "refusal", lambda recipe, device: None)
    monkeypatch.setattr(module, "MIN_COMPILE_BATCH", 1)
    monkeypatch.setattr(module, "native_bf16", lambda: True)  # int8 is rounded from bfloat16
    argv = ("calibrate", "mine.pth", photos, "--recipes", "int8", "--json", "-")
    assert json.loads(run(*argv, "--budget", "0.1")[1])["auto"]["recipe"] == "fp32_blocked"
    assert json.loads(run(*argv)[1])["auto"]["recipe"] == "int8"


def test_limit_and_bad_photos(run, photos, measuring):
    measuring["errors"] = ["photos/b.png: is truncated; copy it again"]
    code, _, err = run(
        "calibrate", "mine.pth", photos, "nowhere.png", "--limit", "2", "--recipes", "int8"
    )
    assert code == 1
    assert [path.name for path in measuring["photos"]] == ["a.png", "b.png"]
    assert "nowhere.png" in err.splitlines()[0] and "truncated" in err.splitlines()[1]


def test_no_photo_left_is_wrong_usage(run, photos, measuring, monkeypatch):
    code, out, err = run("calibrate", "mine.pth", "nowhere.png", "--recipes", "int8")
    assert (code, out) == (2, "")
    assert "no photo" in err.splitlines()[-1]

    def nothing(*_, **__):
        raise DatasetError("3 photos, of which 3 cannot be read")

    monkeypatch.setattr(agreement, "measure", nothing)
    assert run("calibrate", "mine.pth", photos, "--recipes", "int8")[0] == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("random", "a.png"), "random weights"),
        (("mine.pth", "a.png", "--budget", "-1"), "at least 0"),
        (("mine.pth", "a.png", "--budget", "inf"), "at least 0"),
        (("mine.pth", "a.png", "--recipes", "fp7"), "fp7"),
        (("mine.pth", "a.png", "--recipes", "fp8"), "fp8"),
        (("mine.pth", "a.png", "--device", "cuda"), "cuda"),
        (("mine.pth", "photos", "--recipes", "int8", "--json", "no/such/dir.json"), "no/such"),
        (("mine.pth",), "IMAGE"),
    ],
)
def test_wrong_usage_is_one_line_before_any_work(run, photos, measuring, argv, said):
    code, out, err = run("calibrate", *argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and said in err
    assert "photos" not in measuring


def test_results_that_cannot_be_saved_are_still_shown(run, photos, measuring, cache):
    cache.write_text("a file, where the folder should be")
    code, out, err = run("calibrate", "mine.pth", photos, "--recipes", "int8")
    assert code == 1
    assert "not kept" in err and len(err.splitlines()) == 1
    assert "int8" in out and "kept in" not in out


def test_candidates_are_quantizing_recipes_without_compilation_one_for_each_rounding():
    candidates = calibration.candidates(CPU)
    assert candidates
    roundings = [rounding(recipe) for recipe in candidates.values()]
    assert len(set(roundings)) == len(roundings)
    for name, recipe in candidates.items():
        assert recipe.quantize and recipe.compile is None and recipe.sparsify is None
        assert rounding(recipe) == rounding(RECIPES[name])
    # What is run is the recipe itself wherever that starts at once.
    assert calibration.runnable(RECIPES["bf16_sdpa"], CPU) == RECIPES["bf16_sdpa"]
    assert calibration.runnable(RECIPES["fp8"], CPU) is None


def test_a_device_that_runs_no_lossy_recipe(run, photos, measuring, monkeypatch):
    monkeypatch.setattr(calibration, "runnable", lambda recipe, device: None)
    code, _, err = run("calibrate", "mine.pth", photos)
    assert code == 2
    assert "nothing to measure" in err


def test_a_real_checkpoint_end_to_end(run, photos, tmp_path, monkeypatch):
    """A known name and a file of the same weights are one checkpoint, another decoder is not."""
    sam = samfast.load("vit_xs", device="cpu", recipe="fp32")
    tuned, same = (tmp_path / f"{name}.safetensors" for name in ("tuned", "same"))
    state = {key: value.contiguous() for key, value in sam.model.state_dict().items()}
    save_file(state, same)
    save_file(
        state | {"mask_decoder.iou_token.weight": state["mask_decoder.iou_token.weight"] + 1}, tuned
    )
    prints = []
    for checkpoint in ("vit_xs", same, tuned):
        loader = calibration.Loader(str(checkpoint), None, CPU)
        assert loader(Recipe()).batch_size == 1
        prints.append(loader.fingerprint)
        assert loader.name == "vit_xs"
    assert prints[0] == prints[1] != prints[2]


def test_checkpoints_that_cannot_be_calibrated(run, photos, tmp_path, monkeypatch):
    code, _, err = run("calibrate", "vit_xs", photos, "--model", "vit_h", "--recipes", "int8")
    assert code == 2 and "vit_h" in err
    code, _, err = run("calibrate", "nowhere.pth", photos, "--recipes", "int8")
    assert code == 2 and "nowhere.pth" in err
    monkeypatch.setattr(quantized_checkpoint, "find", lambda path: object())
    code, _, err = run("calibrate", "vit_xs", photos, "--recipes", "int8")
    assert code == 2 and "calibrate the checkpoint it was made from" in err
