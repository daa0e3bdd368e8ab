"""Accuracy in the rows of a ladder: on a data set, and agreement with fp32."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import samfast
from samfast.bench import (
    accuracy,
    fp32_reference,
    ladder,
    measure_row,
    samples,
    timing,
    worker,
)
from samfast.bench.coco_dataset import open_dataset
from samfast.bench.mask_points import RULES
from samfast.bench.scoring import Scoring
from samfast.bench.worker import WorkerError
from samfast.errors import DatasetError
from samfast.model.config import CONFIGS
from samfast.recipes import get
from tests.bench import coco, in_process
from tests.bench.test_ladder import Worker
from tests.model.tiny import TINY

SIZE = (48, 64)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(CONFIGS, "tiny", TINY)
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))
    rates = {"tflops": {"fp32": 1.0, "bf16": 1.0}, "layers": {}, "refused": {}}
    monkeypatch.setattr(fp32_reference, "measure_ceilings", lambda *arguments: rates)
    monkeypatch.setattr(measure_row, "WARMUP", 1)
    monkeypatch.setattr(samples, "OBJECTS", (2, 1))


@pytest.fixture
def folder(tmp_path):
    """Three noisy images; masks of two categories and a crowd; the second image has none to ask
    for."""
    generator = np.random.default_rng(2)
    content = [
        coco.annotation(1, 1, coco.rectangle(SIZE, 4, 6, 20, 30), category_id=1),
        coco.annotation(2, 1, coco.rectangle(SIZE, 30, 10, 8, 40), category_id=2),
        coco.annotation(3, 2, coco.rectangle(SIZE, 0, 0, 40, 40), iscrowd=1),
        coco.annotation(4, 3, coco.rectangle(SIZE, 10, 20, 5, 4), category_id=1),
    ]
    root = coco.write(tmp_path / "set", [{"height": SIZE[0], "width": SIZE[1]}] * 3, content)
    coco.edit(root, lambda content: content.update(categories=[{"id": 1, "name": "cat"}]))
    for path in sorted((root / "images").iterdir()):
        Image.fromarray(generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
    return root


def run(recipes, batch_size=1, **options):
    scoring = Scoring(**options) if options else None
    return ladder.run(
        recipes,
        model="tiny",
        checkpoint="random",
        device="cpu",
        repeats=1,
        batch_size=batch_size,
        scoring=scoring,
        run_task=in_process.run_task,
    )


def test_without_a_data_set_agreement_is_that_of_the_samples():
    same, other = run(["fp32_sdpa", "bf16_sdpa"], batch_size=2)
    assert same["status"] == other["status"] == "ok"
    assert same["miou"] is None and same["accuracy"] is None
    assert same["agreement"]["mask_iou"] == pytest.approx(1, abs=1e-3)
    assert same["agreement"]["flipped_share"] == pytest.approx(0, abs=1e-3)
    assert (same["agreement"]["images"], same["agreement"]["masks"]) == (2, 3 * (2 + 1))
    assert 0.5 < other["agreement"]["mask_iou"] < same["agreement"]["mask_iou"]
    assert same["agreement"]["flipped_share"] < other["agreement"]["flipped_share"] < 0.5


def test_a_data_set_is_scored_in_the_same_row(folder, monkeypatch):
    asked: list[int] = []
    monkeypatch.setitem(
        RULES, "seed", lambda mask, rule=RULES["seed"]: asked.append(1) or rule(mask)
    )
    loaded: list[str] = []
    load = samfast.load
    monkeypatch.setattr(
        samfast, "load", lambda *a, **k: loaded.append(str(k["recipe"])) or load(*a, **k)
    )
    clock: list[str] = []
    monkeypatch.setattr(
        measure_row, "measure", lambda *a, **k: clock.append("timed") or timing.measure(*a, **k)
    )
    score = Scoring.score
    monkeypatch.setattr(Scoring, "score", lambda *a: clock.append("scored") or score(*a))
    rows = run(
        ["fp32_sdpa", "bf16"], images=folder / "images", annotations=folder / "annotations.json"
    )
    assert [each["status"] for each in rows] == ["ok", "ok"]
    json.dumps(rows, allow_nan=False)
    assert len(asked) == 3 * 3  # by fp32 and by each row, and not of the crowd
    assert loaded.count("fp32") == 1
    assert clock == [
        "scored",
        *(["timed"] * 2 + ["scored"]) * 2,
    ]  # fp32's first, then each after its timing
    data = open_dataset(folder)
    for each in rows:
        scores = each["accuracy"]
        assert each["miou"] == scores["miou"]
        assert (scores["data"], scores["annotations"]) == ("annotations.json", data.digest)
        assert (scores["point_rule"], scores["images"], scores["masks"]) == ("seed", 2, 3)
        assert {name: group["masks"] for name, group in scores["by_category"].items()} == {
            "2": 1,
            "cat": 2,
        }
        assert (each["agreement"]["images"], each["agreement"]["masks"]) == (2, 9)
    exact, half = (each["agreement"] for each in rows)
    assert half["mask_iou"] <= exact["mask_iou"] <= 1
    assert exact["flipped_share"] <= half["flipped_share"] < 0.5
    assert exact["mask_iou"] > 0.99
    # What eval says of the same weights.
    sam = samfast.load("tiny", checkpoint="random", device="cpu", recipe=get("fp32_sdpa"))
    expected = accuracy.evaluate(sam, data, prompts="point", point_rule="seed")["point"]
    assert rows[0]["accuracy"]["miou_oracle"] == pytest.approx(expected["miou_oracle"], abs=1e-3)


def test_a_set_of_one_image_of_one_mask(tmp_path):
    mask = coco.rectangle(SIZE, 4, 6, 20, 30)
    root = coco.write(
        tmp_path / "one", [{"height": 48, "width": 64}], [coco.annotation(1, 1, mask)]
    )
    (only,) = run(["fp32_sdpa"], data=root, batch_size=2)
    assert only["status"] == "ok"
    assert (only["accuracy"]["images"], only["agreement"]["masks"]) == (1, 3)
    assert 0 <= only["miou"] <= 1


def test_a_damaged_image_is_named(folder):
    (folder / "images" / "2.png").write_text("hello")
    (failed,) = run(["fp32_sdpa"], data=folder)
    assert failed["status"].startswith("failed: no fp32 answers to compare with: ")
    assert "2.png" in failed["status"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"data": "absent"}, DatasetError, "For COCO val2017 download"),
        ({"data": None, "images": "absent"}, DatasetError, "no data set given"),
    ],
)
def test_mistakes_are_told_before_anything_runs(folder, options, error, words):
    asked = Worker()
    with pytest.raises(error, match=words):
        ladder.run(
            ["fp32"], device="cpu", run_task=asked, scoring=Scoring(**{"data": folder, **options})
        )
    assert asked.tasks == []


def test_a_limit_that_leaves_no_annotation(folder):
    coco.edit(
        folder, lambda content: content["annotations"].pop(0) and content["annotations"].pop(0)
    )
    with pytest.raises(DatasetError, match="first 2 images have no annotations"):
        run(["fp32_sdpa"], data=folder, limit=2)


def test_an_interrupt_while_fp32_is_asked():
    interrupted = Worker(fail={("prepare", 0): KeyboardInterrupt()})
    rows = ladder.run(["fp32", "bf16"], device="cpu", run_task=interrupted)
    assert [each["status"] for each in rows] == ["interrupted"]


def test_a_full_disk_while_fp32_s_masks_are_kept():
    full = WorkerError(
        "OutputError: 3.npz: cannot be written: No space left on device; free some space", ""
    )
    rows = ladder.run(["fp32", "bf16"], device="cpu", run_task=Worker(fail={("prepare", 0): full}))
    assert all(
        "No space left" in each["status"] and "free some space" in each["status"] for each in rows
    )


def test_jobs_name_the_data_set_for_other_processes(folder, monkeypatch, tmp_path):
    asked = Worker()
    monkeypatch.chdir(folder.parent)
    scoring = Scoring("set", limit=2)
    ladder.run(["fp32"], device="cpu", run_task=asked, scoring=scoring, cold=True)
    (job,) = asked.jobs
    assert job.scoring == scoring
    seen = []
    monkeypatch.setattr(worker, "measure_row", lambda job, on_stage: seen.append(job) or {})
    task = {"do": "measure", "job": dataclasses.asdict(job)}
    (tmp_path / "task.json").write_text(json.dumps(task))
    files = [str(tmp_path / name) for name in ("task.json", "answer.json", "stage")]
    assert worker.main(files) == 0
    assert seen == [job]


def test_resuming_scores_what_was_scored_otherwise(folder, monkeypatch):
    def again(earlier, **options):
        asked = Worker()
        scoring = Scoring(**options) if options else None
        ladder.run(["fp32"], device="cpu", run_task=asked, resume=earlier, scoring=scoring)
        return len(asked.jobs)

    earlier = ladder.run(["fp32"], device="cpu", run_task=Worker())
    assert again(earlier) == 0
    assert again(earlier, data=folder) == 1
    identity = {
        "annotations": open_dataset(folder).digest,
        "point_rule": "seed",
        "min_area": 0,
        "limit": None,
    }
    scored = [{**earlier[0], "accuracy": identity}]
    assert again(scored, data=folder) == 0
    assert again(scored, data=folder, limit=1) == 1
    assert again(scored, data=folder, point_rule="edt") == 1
    coco.edit(folder, lambda content: content.update(note=1))
    assert again(scored, data=folder) == 1
