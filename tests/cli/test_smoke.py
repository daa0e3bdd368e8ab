"""One run as a user runs it: `python -m samfast` in a new process, a real model, real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from samfast.outputs import decode
from tests.cli.stderr_lines import complaints


def test_segment_from_the_shell(tmp_path):
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[8:24, 12:36] = (200, 40, 40)
    Image.fromarray(pixels).save(tmp_path / "square.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    command = [sys.executable, "-m", "samfast", "segment", "square.png", "broken.png"]
    command += ["--out", "out", "--point", "24,16", "--point", "2,2,0", "--overlay"]
    command += ["--model", "vit_xs", "--checkpoint", "random"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        env=_environment(),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (line,) = complaints(done.stderr)
    assert line.startswith("samfast: broken.png: ")
    assert len(done.stdout.splitlines()) == 2
    (record,) = json.loads((tmp_path / "out" / "square.json").read_text())
    assert record["point_coords"] == [[24, 16], [2, 2]]
    assert record["point_labels"] == [1, 0]
    mask = decode(record["segmentation"])
    assert mask.shape == (32, 48)
    assert mask.sum() == record["area"]
    with Image.open(tmp_path / "out" / "square.overlay.png") as picture:
        assert picture.size == (48, 32)


def _environment():
    root = Path(__file__).resolve().parents[2]
    return dict(os.environ, PYTHONPATH=str(root), PYTHONWARNINGS="error")
