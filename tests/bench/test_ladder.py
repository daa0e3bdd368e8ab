from __future__ import annotations

import json

import pytest
import torch

from samfast.bench import ladder, row, worker
from samfast.errors import InputError, RecipeError
from samfast.recipes import RECIPES

KEYS = {
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


def pretend(job):
    return row.blank(job, "ok") | {"images_per_second": 1.0}


def test_every_recipe_has_a_row_and_refusals_say_why():
    jobs = []
    done: list[int] = []

    def measure(job):
        jobs.append(job)
        return pretend(job)

    rows = ladder.run(device="cpu", measure=measure, progress=done.append)
    assert [each["recipe"] for each in rows] == list(RECIPES)
    assert len(done) == len(rows)
    by_name = {each["recipe"]: each for each in rows}
    assert by_name["fp16_sdpa"]["status"].startswith("refused: fp16 needs a GPU")
    assert by_name["fp16_sdpa"]["images_per_second"] is None
    assert by_name["fp32"]["status"] == "ok"
    assert set(rows[0]) == KEYS
    assert jobs[0].write and jobs[0].recipe == "fp32"
    assert not any(job.write for job in jobs[1:])
    assert len({job.reference for job in jobs}) == 1
    assert all(job.batch_size == 1 for job in jobs)
    json.dumps(rows, allow_nan=False)


def test_names():
    rows = ladder.run(["auto", "fp32", "auto"], device="cpu", measure=pretend)
    assert [each["recipe"] for each in rows] == [rows[0]["recipe"], "fp32"]
    assert rows[0]["recipe"] in RECIPES
    with pytest.raises(RecipeError, match=r"'fp7'.*fp32"):
        ladder.run(["fp32", "fp7"], device="cpu", measure=pretend)
    with pytest.raises(RecipeError, match="no recipe"):
        ladder.run([], device="cpu", measure=pretend)
    with pytest.raises(InputError, match="vit_z"):
        ladder.run(["fp32"], model="vit_z", measure=pretend)
    with pytest.raises(InputError, match="batch_size=0"):
        ladder.run(["fp32"], batch_size=0, measure=pretend)


def test_weights_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # no checkpoint of vit_b in this cache
    assert ladder.run(["fp32"], device="cpu", measure=pretend)[0]["weights"] == "packaged"
    assert ladder.run(["fp32"], model="vit_b", device="cpu", measure=pretend)[0]["weights"] == "random"
    given = ladder.run(["fp32"], checkpoint="a/b.pth", device="cpu", measure=pretend)[0]
    assert given["weights"] == "checkpoint b.pth"


def test_interrupt_keeps_finished_rows():
    def measure(job):
        if job.recipe == "fp32_folded":
            raise KeyboardInterrupt
        return pretend(job)

    rows = ladder.run(["fp32", "fp32_sdpa", "fp32_folded", "bf16"], device="cpu", measure=measure)
    assert [each["status"] for each in rows] == ["ok", "ok", "interrupted"]


def test_without_a_reference_nothing_is_measured():
    def measure(job):
        assert job.write
        return row.blank(job, "failed: out of memory")

    rows = ladder.run(["fp32", "bf16"], device="cpu", measure=measure)
    assert all("no fp32 answers" in each["status"] and "out of memory" in each["status"] for each in rows)


def test_a_worker_that_dies_is_a_row(tmp_path):
    rows = ladder.run(["fp32"], checkpoint=str(tmp_path / "absent.pth"), device="cpu")
    assert rows[0]["status"].startswith("failed: ")
    assert "absent.pth" in rows[0]["status"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "answers.safetensors"
    job = job_for("fp32", path, write=True)
    assert row.measure_row(job)["status"] == "ok"
    return path


def job_for(recipe, path, **more):
    fields = {"model": "vit_xs", "checkpoint": None, "weights": "packaged", "device": "cpu", "batch_size": 1}
    return row.Job(recipe=recipe, reference=str(path), repeats=1, **{**fields, **more})


def test_a_row_in_its_own_process(reference):
    measured = ladder._in_a_process(job_for("fp32_sdpa", reference))
    assert measured["status"] == "ok"
    assert set(measured) == KEYS
    assert 0 < measured["max_relative_error"] < 1e-4
    assert measured["encoder_images_per_second"] > 0  # not compared: one run each, on a busy machine
    assert measured["images_per_second"] > 0
    assert measured["prompts_per_image"] == 7
    assert measured["peak_memory_bytes"] is None or measured["peak_memory_bytes"] > 2**20
    assert measured["compile_seconds"] == 0


def test_a_wrong_answer_is_not_timed(reference, monkeypatch, tmp_path):
    from safetensors.torch import load_file, save_file

    other = {key: value + value.std() for key, value in load_file(reference).items()}
    save_file(other, tmp_path / "other.safetensors")
    monkeypatch.setattr(row, "measure", None)  # a call would fail
    wrong = row.measure_row(job_for("fp32_sdpa", tmp_path / "other.safetensors"))
    assert wrong["status"].startswith("wrong: ")
    assert wrong["max_relative_error"] > 0.1
    assert wrong["images_per_second"] is None


def test_a_rival_that_is_not_there(reference, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "segment_anything", None)
    refused = row.measure_row(job_for("rival:segment-anything", reference))
    assert refused["status"].startswith("refused: segment_anything cannot be imported")


@pytest.mark.slow
def test_a_rival_has_the_same_weights(reference):
    pytest.importorskip("transformers")
    measured = row.measure_row(job_for("rival:transformers", reference))
    assert measured["status"] == "ok"
    assert measured["max_relative_error"] < 1e-4
    assert measured["images_per_second"] is None
    assert measured["encoder_images_per_second"] > 0


def test_relative_error():
    assert row.relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])) == 0
    assert row.relative_error(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])) == 1
    assert row.relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_an_interrupted_worker_says_so(tmp_path, monkeypatch):
    job = tmp_path / "job.json"
    job.write_text(json.dumps({**vars(job_for("fp32", "x"))}))

    def interrupt(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "measure_row", interrupt)
    assert worker.main([str(job), str(tmp_path / "row.json")]) == 130
    assert not (tmp_path / "row.json").exists()
