"""timing, memory, environment."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch

import samfast
from samfast.bench import environment, memory
from samfast.bench.timing import Timing, measure


def test_median_and_spread():
    timing = Timing((1.0, 4.0, 2.0), first=9.0)
    assert timing.median == 2.0
    assert timing.spread == 1.5


def test_warm_up_is_apart():
    calls: list[float] = []

    def work():
        calls.append(time.perf_counter())
        time.sleep(0.05 if len(calls) == 1 else 0.002)

    timing = measure(work, "cpu", repeats=3, warmup=2)
    assert len(calls) == 5
    assert len(timing.samples) == 3
    assert timing.first >= 0.05 > max(timing.samples) >= 0.002


@pytest.mark.parametrize("counts", [{"repeats": 0}, {"warmup": 0}])
def test_at_least_one_run(counts):
    with pytest.raises(ValueError, match="at least 1"):
        measure(lambda: None, "cpu", **counts)


@pytest.mark.skipif(memory.resident() is None, reason="this system does not tell resident memory")
def test_peak_counts_what_was_freed_again():
    size = 64 * 2**20
    with memory.Peak("cpu") as first:
        block = torch.ones(size // 4)
        del block
    assert first.bytes is not None
    assert size * 0.9 < first.bytes < size * 3
    with memory.Peak("cpu") as second:
        pass
    assert second.bytes is not None
    assert second.bytes < size / 2  # an earlier peak is not charged to a later block


def test_peak_survives_an_error():
    peak = memory.Peak("cpu")
    with pytest.raises(KeyError), peak:
        raise KeyError
    assert memory.resident() is None or peak.bytes is not None


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "absent")
    assert memory.resident() is None
    with memory.Peak("cpu") as peak:
        pass
    assert peak.bytes is None
    if sys.platform != "win32":
        assert memory.peak_resident() > 2**20


def test_the_stamp():
    stamp = environment.stamp("cpu")
    assert set(stamp) >= {
        "gpu",
        "driver",
        "torch",
        "triton",
        "samfast",
        "commit",
        "dirty",
        "cpu",
        "threads",
        "tf32",
        "date",
    }
    assert stamp["gpu"] is None and stamp["driver"] is None
    assert stamp["torch"] == torch.__version__
    assert stamp["samfast"] == samfast.__version__
    assert stamp["threads"] == torch.get_num_threads()
    assert stamp["cpu"]
    assert stamp["tf32"] is torch.backends.cuda.matmul.allow_tf32
    assert stamp["date"].endswith("+00:00")
    json.dumps(stamp, allow_nan=False)


def git(folder, *words):
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def test_the_commit_is_the_packages_own(tmp_path):
    package = tmp_path / "samfast"
    package.mkdir()
    (package / "a.py").write_text("")
    assert environment._commit(package) == (None, None)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")
    commit, dirty = environment._commit(package)
    assert commit is not None and len(commit) == 40
    assert dirty is False
    (package / "a.py").write_text("changed")
    assert environment._commit(package) == (commit, True)
    installed = tmp_path / "venv" / "site-packages" / "samfast"  # inside a checkout of something else
    installed.mkdir(parents=True)
    assert environment._commit(installed) == (None, None)


def test_no_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.stamp()["commit"] is None


def test_the_stamp_imports_no_triton():
    code = (
        "import sys; from samfast.bench.environment import stamp; stamp(); sys.exit('triton' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
