"""benchmarks/encoder_gpu.py: what it asks the ladder for, and what it writes."""

from __future__ import annotations

import argparse
import json

import pytest

from samfast.bench.bench_job import Job, blank
from samfast.errors import RecipeError
from samfast.model.config import CONFIGS
from samfast.recipes import RECIPES
from tests.bench.benchmark_scripts import imported


@pytest.fixture(scope="module")
def script():
    with imported("encoder_gpu") as module:
        yield module


@pytest.fixture
def calls(script, monkeypatch):
    """A ladder that answers with one row a recipe and batch size; what it was asked."""
    seen: list[dict] = []

    def run(names, *, model, batch_size, resume, on_rows, **options):
        seen.append({"names": names, "model": model, "batch_size": batch_size, **options})
        rows = list(resume)
        for name in names:
            for n in batch_size:
                job = Job(name, n, model, None, "random", "cpu", "", (), ())
                rows.append(blank(job, "failed: lost" if name == "fp32" else "ok"))
                on_rows(rows, rows[-1])
        return rows

    monkeypatch.setattr(script.ladder, "run", run)
    return seen


def test_one_file_for_all_models(script, calls, tmp_path, capsys):
    out = tmp_path / "rows.json"
    words = ["--models", "vit_b:1,8", "vit_h:8", "--recipes", "bf16", "--rivals", "transformers"]
    words += [
        "--rivals-path",
        "there",
        "--out",
        str(out),
        "--device",
        "cpu",
        "--profile",
    ]
    assert script.main(words) == 0
    rows = json.loads(out.read_text())
    names = ["rival:transformers", "bf16"]
    assert [(row["model"], row["recipe"], row["batch_size"]) for row in rows] == [
        *(("vit_b", name, n) for name in names for n in (1, 8)),
        *(("vit_h", name, 8) for name in names),
    ]
    first, second = calls
    assert first["names"] == second["names"] == names
    assert first["checkpoint"] == "random"
    assert first["rivals_path"] == "there"
    assert first["kernels"] is True
    assert "vit_h" in capsys.readouterr().out


def test_what_failed_makes_the_exit_code(script, calls, tmp_path):
    words = [
        "--models",
        "vit_b:1",
        "--rivals",
        "--out",
        str(tmp_path / "a.json"),
        "--device",
        "cpu",
    ]
    assert script.main([*words, "--recipes", "fp32"]) == 1


def test_a_mistake_is_one_line(script, monkeypatch, tmp_path, capsys):
    def run(*names, **options):
        raise RecipeError("unknown recipe 'x'")

    monkeypatch.setattr(script.ladder, "run", run)
    assert script.main(["--out", str(tmp_path / "a.json"), "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "encoder_gpu: unknown recipe 'x'\n"


def test_models_on_the_command_line(script):
    assert script.parse_model("vit_b:1,8,32") == ("vit_b", (1, 8, 32))
    for text in ("vit_b", "vit_b:", ":8", "vit_b:0", "vit_b:a"):
        with pytest.raises(argparse.ArgumentTypeError, match="MODEL:N"):
            script.parse_model(text)


def test_what_is_measured_unless_said_otherwise_exists(script):
    arguments = script.parser().parse_args(["--out", "x"])
    assert set(arguments.recipes) <= set(RECIPES)
    assert {f"rival:{name}" for name in arguments.rivals} <= set(script.ladder.RIVALS)
    asked = {(model, n) for model, sizes in arguments.models for n in sizes}
    assert asked >= {
        ("vit_b", 1),
        ("vit_b", 8),
        ("vit_b", 32),
        ("vit_h", 8),
        ("vit_l", 8),
        ("vit_xs", 8),
    }
    assert {model for model, _ in asked} <= set(CONFIGS)
