"""A finished run of 100,000 images says at once that nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from samfast.cluster.destination import Destination
from samfast.cluster.manifest import Manifest
from samfast.cluster.run_identity import EngineIdentity, run_identity
from samfast.cluster.run_shards import Recorder
from samfast.cluster.shard_files import write_shard
from samfast.cluster.shards import SHARD_SIZE, shards_left
from samfast.cluster.sources import open_source
from samfast.cluster.work import DoneImage, Everything, ShardAnswers

ROOT = Path(__file__).resolve().parents[2]

COUNT = 100_000

ASKED: dict[str, Any] = {
    "model": None,
    "checkpoint": None,
    "recipe": "auto",
    "device": None,
    "options": {},
}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder of 100,000 empty files in 100 folders, and a finished run over them."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    for number in range(COUNT):
        folder = photos / f"{number % 100:02}"
        if number < 100:
            folder.mkdir(parents=True)
        (folder / f"{number:06}.jpg").touch()
    source = open_source(str(photos))
    engine = EngineIdentity("vit_xs", "w", "fp32", "dtype=float32", "cpu", {})
    identity = run_identity(engine, Everything(), source, SHARD_SIZE)
    destination = Destination(str(out))
    manifest = Manifest(destination, identity, ASKED)
    with Recorder(manifest) as recorder:
        for shard in shards_left(source.entries, SHARD_SIZE, {}):
            images = [DoneImage(entry.key, 640, 480) for entry in shard.entries]
            record = write_shard(destination, identity, ShardAnswers(shard.number, images, []))
            recorder.add(record, [])
    return out


def test_a_finished_run_of_100000_images_says_within_5_seconds_that_nothing_is_left(finished):
    command = [sys.executable, "-m", "samfast", "run", str(finished.parent / "photos")]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--out", str(finished)],
            capture_output=True,
            text=True,
            timeout=60,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
        )
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert f"nothing is left: {COUNT} images done before, 0 failed" in done.stderr
    assert min(times) < 5
