"""`samfast doctor`."""

from __future__ import annotations

import json
import shutil

import torch

from samfast import recipes
from samfast.apps import doctor


def test_json_on_stdout_is_pure(run):
    code, out, err = run("doctor", "--json", "-")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["torch"] == torch.__version__
    assert [row["name"] for row in report["recipes"]] == list(recipes.RECIPES)
    assert report["auto"]["recipe"] in recipes.RECIPES
    assert report["auto"]["why"]
    assert [row["name"] for row in report["models"]] == ["vit_xs", "vit_b", "vit_l", "vit_h"]
    assert set(report["extras"]) == set(doctor.EXTRAS)


def test_text_says_why_a_recipe_is_refused(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        recipes, "refusal", lambda recipe, device: "needs a moon" if recipe.dtype == torch.float16 else None
    )
    code, out, _ = run("doctor")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert lines["fp16_sdpa"].endswith("refused: needs a moon")
    assert lines["fp32"].endswith("runs")
    assert "auto" in lines


def test_gpu_lines():
    report = doctor.examine() | {
        "cuda": "13.0",
        "driver": None,
        "gpus": [{"name": "Card", "memory_bytes": 8 * 2**30, "capability": "9.0"}],
    }
    assert any(
        "Card, 8 GiB, compute capability 9.0, CUDA 13.0, driver unknown" in line
        for line in doctor.describe(report)
    )
    assert any("none found" in line for line in doctor.describe(report | {"gpus": []}))
    assert any("without CUDA" in line for line in doctor.describe(report | {"gpus": [], "cuda": None}))


def test_a_missing_extra_says_what_to_install():
    report = doctor.examine() | {"extras": {"quant": {"torchao": None}, "geo": {"rasterio": "1.4"}}}
    lines = doctor.describe(report)
    assert any("missing: pip install torchao" in line for line in lines)
    assert any(line.split() == ["geo", "installed"] for line in lines)


def test_a_driver_that_cannot_be_asked(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.driver_version() is None
    monkeypatch.setattr(shutil, "which", lambda name: "/no/such/nvidia-smi")
    assert doctor.driver_version() is None
