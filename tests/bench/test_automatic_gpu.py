"""The script that compares automatic masks: how it says that two generators agree, and that a
failure is a row."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samfast import coco_rle

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "automatic_gpu.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("automatic_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(*rows):
    mask = torch.zeros(1, 8, 6, dtype=torch.bool)
    for row in rows:
        mask[0, row] = True
    return {"segmentation": coco_rle.encode(mask[0])}


def test_agreement_counts_and_matches(script):
    same = [record(0, 1), record(5)]
    assert script.agreement([same], [same]) == {
        "photos": 1,
        "masks": 2,
        "original_masks": 2,
        "photos_of_equal_count": 1,
        "matched_iou": 1.0,
        "least_matched_iou": 1.0,
    }
    agreement = script.agreement([[record(0)], [], [record(3)]], [same, same, []])
    assert (
        agreement["masks"],
        agreement["original_masks"],
        agreement["photos_of_equal_count"],
    ) == (2, 4, 0)
    assert agreement["matched_iou"] == pytest.approx((0.5 + 0 + 0 + 0) / 4)
    assert agreement["least_matched_iou"] == 0


def test_photos_are_enlarged_to_a_million_pixels(script):
    photo = np.zeros((300, 500, 3), np.uint8)
    height, width, _ = script.enlarged(photo).shape
    assert height * width == pytest.approx(1_000_000, rel=2e-3)
    assert width / height == pytest.approx(5 / 3, rel=2e-3)


def test_what_fails_is_a_row(script, monkeypatch, tmp_path):
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(tmp_path / "a.jpg")

    def rival(name, path, options, batch=None):
        if batch is not None:
            raise IndexError("its own fault")
        return lambda photo: [record(0, 1)]

    monkeypatch.setattr(script, "rival", rival)
    monkeypatch.setattr(script, "ours", lambda recipe, options: lambda photo: [record(0, 1)])
    monkeypatch.setattr(
        script, "streamed", lambda recipe, *rest: {"seconds_a_photo": len(str(recipe))}
    )
    monkeypatch.setattr(script, "in_a_process", script.attempt)
    out = tmp_path / "rows.json"
    assert (
        script.main(["--photos", str(tmp_path), "--out", str(out), "--fast", "1", "--same", "1"])
        == 0
    )
    rows = json.loads(out.read_text())
    assert [row["status"].partition(":")[0] for row in rows] == ["ok"] * 5 + ["failed"] * 2
    assert rows[-1]["status"] == "failed: IndexError: its own fault"
    assert rows[4]["agreement"]["matched_iou"] == 1
    assert set(rows[4]["ratio_to"]) == {"rival:segment-anything"}
    assert ["stream" in row for row in rows] == [False, *[True] * 4, False, False]
    assert rows[4]["stream"] == {"seconds_a_photo": len("fp8")}


def die(*arguments):
    os._exit(3)


def test_a_process_that_dies_is_a_row(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "attempt", die)
    row = script.in_a_process(
        "fused", script.parser().parse_args(["--photos", "x", "--out", "y"]), tmp_path
    )
    assert row["what"] == "fused" and row["status"].startswith("failed: BrokenProcessPool")
    assert row["environment"]["torch"] == torch.__version__


def test_a_row_has_a_process_of_its_own(tmp_path):
    """Which says what is wrong: there is no checkout here, of whatever of the rival's needs is
    installed."""
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(tmp_path / "a.jpg")
    out = tmp_path / "rows.json"
    what = "rival:segment-anything-fast, 8 points at a time"
    command = [
        sys.executable,
        str(SCRIPT),
        "--photos",
        str(tmp_path),
        "--out",
        str(out),
        "--rows",
        what,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    (row,) = json.loads(out.read_text())
    assert row["what"] == what and row["environment"]["torch"] == torch.__version__
    assert row["status"].startswith(
        "failed: MissingExtraError: segment_anything_fast cannot be imported"
    )
