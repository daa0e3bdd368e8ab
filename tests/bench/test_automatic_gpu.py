"""The script that compares automatic masks: how it says that two generators agree, and that a
failure is a row."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import samfast
from samfast import coco_rle
from tests.bench.benchmark_scripts import FOLDER, imported

SCRIPT = FOLDER / "automatic_gpu.py"


@pytest.fixture(scope="module")
def script():
    with imported("automatic_gpu") as module:
        yield module


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

    def rival(subject, name, path, options, batch=None):
        if batch is not None:
            raise IndexError("its own fault")
        return lambda photo: [record(0, 1)]

    def streamed(subject, recipe, *rest):
        return {"seconds_a_photo": len(str(recipe))}

    monkeypatch.setattr(script, "rival", rival)
    monkeypatch.setattr(
        script, "ours", lambda subject, recipe, options: lambda photo: [record(0, 1)]
    )
    monkeypatch.setattr(script, "streamed", streamed)
    monkeypatch.setattr(script, "in_a_process", lambda limit, work, *arguments: work(*arguments))
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
    assert {row["model"] for row in rows} == {"vit_xs"}
    assert rows[0]["latency"]["p50"] <= rows[0]["latency"]["p90"] <= max(rows[0]["samples"])


def test_percentiles_are_of_the_nearest_rank(script):
    assert script.percentiles([float(n) for n in range(10, 0, -1)]) == {"p50": 5, "p90": 9}
    assert script.percentiles([2.0]) == {"p50": 2, "p90": 2}


ENDINGS = """
import math, os, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
import automatic_gpu as script

def die(*arguments):
    os._exit(3)

def sleep(*arguments):
    time.sleep(60)

def wrong(*arguments):
    raise ValueError("of no use")

def right(*arguments):
    return {{"status": "ok"}}

if __name__ == "__main__":
    subject = script.Subject("vit_xs", None, {{}})
    for work, limit in ((die, math.inf), (sleep, 1), (wrong, 60), (right, 60)):
        script.attempt = work
        row = script.row_of(subject, "fused", None, Path("x"), time.monotonic() + limit)
        print(row["what"], row["status"])
    print(script.row_of("the model was not made", "fused", None, Path("x"), 0.0)["status"])
"""


def test_a_process_that_ends_badly_is_a_row(tmp_path):
    program = tmp_path / "endings.py"
    program.write_text(ENDINGS.format(folder=str(SCRIPT.parent)))
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "fused failed: its process ended with exit code 3",
        "fused failed: not done within the 1 s that were left",
        "fused failed: ValueError: of no use",
        "fused ok",
        "failed: the model was not made",
    ]


def test_larger_models_have_the_weights_of_the_packaged_one_and_its_thresholds(script, tmp_path):
    arguments = script.parser().parse_args(["--photos", "x", "--out", "x"])
    subject = script.subject_of("vit_b", arguments, tmp_path)
    assert subject.thresholds == script.THRESHOLDS
    assert subject.weights is not None
    wide = samfast.load("vit_b", checkpoint=subject.weights, device="cpu", recipe="fp32").model
    packaged = samfast.load("vit_xs", device="cpu", recipe="fp32").model.state_dict()
    key = "image_encoder.patch_embed.proj.bias"
    assert torch.equal(wide.state_dict()[key], packaged[key].repeat(4))


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
