"""`benchmarks/files_to_masks.py`: every way answers the same boxes, and a row tells how fast."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import samfast
from samfast.recipes import RECIPES
from tests.bench.benchmark_scripts import imported
from tests.bench.coco import annotation, rectangle, write
from tests.model.tiny import fast, random_sam


@pytest.fixture
def script():
    with imported("files_to_masks") as module:
        yield module


def test_rows_of_all_ways(script, tmp_path, monkeypatch, capsys):
    sam = fast(random_sam(), RECIPES["fp32_sdpa"], batch_size=2)
    asked = []

    def the_original(model, device, path):
        return sam

    def as_the_original(predictor, files):
        asked.append(len(files))
        return script.in_batches(predictor, files)

    monkeypatch.setattr(samfast, "load", lambda *args, **options: sam)
    monkeypatch.setattr(script, "original", the_original)
    monkeypatch.setattr(script, "by_the_original", as_the_original)
    arguments = ["--files", "3", "--rounds", "2", "--compared", "2", "--device", "cpu"]
    arguments += ["--rival-rounds", "1", "--first", "0.001"]
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--json", str(tmp_path / "rows.json")])
    assert script.main() == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert json.loads(capsys.readouterr().out) == rows
    assert {row["way"] for row in rows} == {
        "batches",
        "predict_each",
        "predict_each_rle",
        script.RIVAL,
    }
    assert asked == [3, 3, 2]
    for row in rows:
        assert (row["files"], row["boxes"]) == (3, 3 * script.BOXES)
        low, high = row["spread"]
        assert 0 < low <= row["images_per_second"] <= high
        assert row["miou_of_ways"] == row["miou_to_original"] == 1.0
        assert row["first_round"]["seconds_to_first_masks"] > 0
        assert row["rounds"] == (1 if row["way"] == script.RIVAL else 2)
        assert row["environment"]["device"] == "cpu"
        first = row["first_seconds"]
        assert (first is None) == (row["way"] != "predict_each")
        if first is not None:
            assert first["seconds"] > 0.001 and first["images_per_second"] > 0


def test_each_model_has_a_process_of_its_own(script, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        model = command[command.index("--models") + 1]
        if model != "vit_l":
            script.Path(command[-1]).write_text(json.dumps([{"model": model}]))
        return script.subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(
        sys, "argv", ["x", "--rounds", "1", "--models", "vit_b", "vit_l", "vit_xs", "--first", "2"]
    )
    rows = script.of_each_model(["vit_b", "vit_l", "vit_xs"])
    assert rows == [{"model": "vit_b"}, {"model": "vit_xs"}]
    for command in commands:
        assert command[2:5] == ["--rounds", "1", "--models"]
        assert command[6:9] == ["--first", "2", "--json"]


def test_masks_that_differ_are_told(script):
    left = np.zeros((4, 6), bool)
    left[:, :2] = True
    both = left.copy()
    both[:, 2:4] = True
    assert script.agreement([[left, both]], [[left, left]]) == pytest.approx(0.75)
    assert script.agreement([[~left & left]], [[~left & left]]) == 1.0


def test_boxes_are_those_of_the_annotations(script, tmp_path):
    size = (30, 40)
    masks = [rectangle(size, 2, 3, 10, 20), rectangle(size, 5, 5, 4, 6)]
    data = write(
        tmp_path,
        [{"height": 30, "width": 40}, {"height": 30, "width": 40}],
        [annotation(1, 2, masks[0]), annotation(2, 2, masks[1])],
    )
    files = script.annotated(str(data), 10)
    assert [file.path.name for file in files] == ["1.png"]
    assert [box for file in files for box in file.boxes] == [[3, 2, 23, 12], [5, 5, 11, 9]]
