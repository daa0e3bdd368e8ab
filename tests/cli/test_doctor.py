"""`samfast doctor`."""

from __future__ import annotations

import json

import pytest
import torch

import samfast
from samfast import recipes
from samfast.cli import doctor_command
from samfast.recipes import RECIPES, evidence


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path))


def test_json_on_stdout_is_pure(run):
    code, out, err = run("doctor", "--json", "-")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["torch"] == torch.__version__
    assert [row["name"] for row in report["recipes"]] == list(recipes.RECIPES)
    assert report["auto"]["recipe"] in recipes.RECIPES
    assert report["auto"]["why"]
    assert [row["name"] for row in report["models"]] == ["vit_xs", "vit_b", "vit_l", "vit_h"]
    assert set(report["extras"]) == set(doctor_command.EXTRAS)


def test_text_says_why_a_recipe_is_refused(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        recipes,
        "refusal",
        lambda recipe, device: "needs a moon" if recipe.dtype == torch.float16 else None,
    )
    code, out, _ = run("doctor")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert lines["fp16_sdpa"].endswith("refused: needs a moon")
    assert lines["fp32"].endswith("runs")
    assert "auto" in lines


def test_gpu_lines():
    report = doctor_command.examine() | {
        "cuda": "13.0",
        "driver": None,
        "gpus": [
            {
                "name": "Card",
                "memory_bytes": 8 * 2**30,
                "capability": "9.0",
                "window_attention": "Triton",
            }
        ],
    }
    assert any(
        "Card, 8 GiB, compute capability 9.0, CUDA 13.0, driver unknown, windows by Triton" in line
        for line in doctor_command.describe(report)
    )
    assert any("none found" in line for line in doctor_command.describe(report | {"gpus": []}))
    assert any(
        "without CUDA" in line
        for line in doctor_command.describe(report | {"gpus": [], "cuda": None})
    )


def test_a_missing_extra_says_what_to_install():
    report = doctor_command.examine() | {
        "extras": {"quant": {"torchao": None}, "geo": {"rasterio": "1.4"}}
    }
    lines = doctor_command.describe(report)
    assert any("missing: pip install torchao" in line for line in lines)
    assert any(line.split() == ["geo", "installed"] for line in lines)


def calibrated(recipe: str, fingerprint: str = "ab" * 32) -> evidence.Evidence:
    return evidence.Evidence(
        fingerprint=fingerprint,
        checkpoint="mine.pth",
        model="vit_b",
        recipe=recipe,
        rounding=evidence.rounding(RECIPES[recipe]),
        kind="agreement",
        loss_points=0.25,
        photos=40,
        photo_set="photos",
        details={},
        environment={"samfast": samfast.__version__, "date": "2030-01-02T00:00:00+00:00"},
    )


def test_every_measured_checkpoint_has_a_choice_of_auto(run, monkeypatch):
    evidence.save_calibrated([calibrated("int8"), calibrated("fp8")])
    asked = []
    choose = recipes.choose

    def spy(device, **rest):
        asked.append(rest)
        return choose(device, **rest)

    monkeypatch.setattr(recipes, "choose", spy)
    report = json.loads(run("doctor", "--json", "-")[1])
    prints = [known["fingerprint"] for known in report["checkpoints"]]
    assert prints == list(evidence.known_fingerprints())
    assert len(prints) == len(set(prints))
    assert asked[0] == {}  # for a checkpoint without measured losses
    assert {"fingerprint": "ab" * 32, "model": "vit_b"} in asked
    mine = report["checkpoints"][-1]
    assert mine["checkpoint"] == "mine.pth"
    assert mine["auto"]["recipe"] in RECIPES and mine["auto"]["why"]
    assert [(row["recipe"], row["loss_points"], row["date"]) for row in mine["rows"]] == [
        ("int8", 0.25, "2030-01-02"),
        ("fp8", 0.25, "2030-01-02"),
    ]
    packaged = [
        known for known in report["checkpoints"] if known["rows"][0]["source"] == "packaged"
    ]
    assert [known["checkpoint"] for known in packaged] == ["vit_xs"]


def test_calibrated_rows_are_listed_in_words(run):
    evidence.save_calibrated([calibrated("int8")])
    code, out, _ = run("doctor")
    assert code == 0
    start = next(i for i, line in enumerate(out.splitlines()) if "mine.pth" in line)
    row, choice = out.splitlines()[start + 1 : start + 3]
    assert row.split()[:2] == ["int8", "0.25"] and "40 photos" in row and "samfast calibrate" in row
    assert choice.startswith("  auto picks ")


def test_invalid_measurements_are_reported(run, caplog):
    path = evidence.save_calibrated([calibrated("int8")])
    path.write_text("{")
    code, out, _ = run("doctor")
    assert code == 0
    assert "no valid measurement (run samfast calibrate), fingerprint abababababab" in out
    assert len(caplog.records) == 1  # though it is read twice
    assert str(path) in caplog.records[0].getMessage()
