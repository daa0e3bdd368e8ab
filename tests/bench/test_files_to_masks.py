"""`benchmarks/files_to_masks.py`: every way answers the same boxes, and a row tells how fast."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import samfast
from samfast.recipes import RECIPES
from tests.bench.coco import annotation, rectangle, write
from tests.model.tiny import fast, random_sam

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "files_to_masks.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("files_to_masks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


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
    assert asked == [3, 3, 3, 2]
    for row in rows:
        assert (row["files"], row["boxes"]) == (3, 3 * script.BOXES)
        low, high = row["spread"]
        assert 0 < low <= row["images_per_second"] <= high
        assert row["miou_of_ways"] == row["miou_to_original"] == 1.0
        assert row["first_round"]["seconds_to_first_masks"] > 0
        assert row["environment"]["device"] == "cpu"


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
