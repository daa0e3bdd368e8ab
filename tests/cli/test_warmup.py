"""`samfast warmup`."""

from __future__ import annotations

import json
import types
from dataclasses import replace
from pathlib import Path

import pytest

from samfast.cli import warmup_command
from samfast.device.artifacts import CachedCode
from samfast.encoding import tune_kernels
from samfast.encoding.compiled_blocks import FirstCall
from samfast.recipes import RECIPES
from tests.model.tiny import fast, random_sam


@pytest.fixture
def loaded(monkeypatch):
    """A small model; tests set what its encoder reports of the first call."""
    sam = fast(random_sam(), RECIPES["fp32"], recipe_name="fp32", batch_size=2)
    monkeypatch.setattr(warmup_command, "load_model", lambda args: sam)
    return sam


def compiled(sam, *call):
    sam.encode.compiled = types.SimpleNamespace(first=FirstCall(*call))


def test_a_recipe_without_compilation_has_nothing_to_keep(run, loaded):
    code, out, err = run("warmup")
    assert (code, err) == (0, "")
    assert "compiled  nothing: this recipe compiles nothing" in out
    assert "batch of 2 images" in out
    assert "kept" not in out


def test_json_on_stdout_is_pure(run, loaded):
    code, out, err = run("warmup", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["model"], report["recipe"], report["batch_size"]) == ("tiny", "fp32", 2)
    assert (report["compiled"], report["cuda_graphs"]) == (None, [])
    assert report["first_batch_seconds"] > 0 and report["click_seconds"] > 0


def test_without_cached_code_it_compiles(run, loaded):
    compiled(loaded, 21.04, 2, None, Path("/cache/a.bin"))
    out = run("warmup")[1]
    assert "compiled  2 graphs, in 21.0 s" in out
    assert "kept      /cache/a.bin" in out


def test_cached_code_is_named(run, loaded):
    compiled(loaded, 2.0, 0, CachedCode(Path("/cache/a.bin"), 21.0), None)
    out = run("warmup")[1]
    assert "compiled  nothing: 2.0 s from the cache instead of 21.0 s" in out
    assert "kept      /cache/a.bin" in out


def test_code_from_torch_s_cache_is_reported(run, loaded):
    compiled(loaded, 2.0, 0, None, Path("/cache/a.bin"))
    assert "nothing that torch's own cache did not hold, in 2.0 s" in run("warmup")[1]


def test_a_cache_that_cannot_be_written_is_reported(run, loaded):
    compiled(loaded, 21.0, 1, None, None)
    out = run("warmup")[1]
    assert "compiled  1 graph, in 21.0 s" in out
    assert "kept      nothing" in out


def test_recorded_graphs_are_named(run, loaded):
    loaded.encode.graph = types.SimpleNamespace(sizes=(1, 2))
    assert "recorded  CUDA graphs of 1, 2 images" in run("warmup")[1]


def test_a_recipe_that_does_not_run_here_is_wrong_usage(run):
    code, _, err = run("warmup", "--device", "cpu", "--recipe", "compile")
    assert code == 2
    assert "needs an NVIDIA GPU" in err


def test_tune_is_refused_for_a_recipe_without_kernels(run, loaded):
    code, out, err = run("warmup", "--tune")
    assert (code, out) == (2, "")
    assert "no Triton kernels to tune" in err


def test_tune_prints_the_configurations(run, loaded, monkeypatch):
    row = {"window": True, "milliseconds": 0.25, "config": {"block_m": 64, "num_warps": 4}}
    loaded.runtime = replace(loaded.runtime, recipe=RECIPES["bf16_triton"])
    monkeypatch.setattr(
        tune_kernels, "tune_model", lambda *given: ([row], Path("/cache/tuned/a.json"))
    )
    code, out, _ = run("warmup", "--tune")
    assert code == 0
    assert "tuned     windows attention, 0.250 ms: block_m 64, num_warps 4" in out
    assert "kept in /cache/tuned/a.json" in out
