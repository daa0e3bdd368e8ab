"""timing, memory, environment."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

import samfast
from samfast.bench import environment, peak_memory, timing
from samfast.bench.timing import Timing, measure


def test_median_and_spread():
    timing = Timing((1.0, 4.0, 2.0))
    assert timing.median == 2.0
    assert timing.spread == 1.5


def test_a_single_run_has_no_spread():
    assert Timing((2.0,)).spread is None
    assert Timing((2.0, 2.0)).spread == 0


def test_warm_up_is_apart():
    calls: list[float] = []

    def work():
        calls.append(time.perf_counter())
        time.sleep(0.05 if len(calls) == 1 else 0.002)

    timing = measure(work, "cpu", repeats=3, warmup=2)
    assert len(calls) == 5
    assert len(timing.samples) == 3
    assert 0.05 > max(timing.samples) >= 0.002


def test_one_run_that_waited_does_not_widen_the_spread():
    few = Timing((1.0, 1.0, 3.0))
    assert few.spread == pytest.approx(2.0)
    many = Timing((1.0,) * 9 + (1.1,) * 10 + (9.0,))
    assert many.spread == pytest.approx(0.1 / many.median)


def test_the_slowest_of_a_hundred_may_be_left_out():
    hundred = [1.0] * 98 + [2.0, 9.0]
    assert Timing(tuple(hundred)).p99 == 2.0
    assert Timing((1.0, 3.0, 2.0)).p99 == 3.0


def test_time_to_spare_buys_more_runs(monkeypatch):
    seconds = iter([0.3] * 500)
    monkeypatch.setattr(timing, "_clock", lambda work, device: next(seconds))
    assert len(measure(lambda: None, "cpu", repeats=2, warmup=1, seconds=1.0).samples) == 3
    assert len(measure(lambda: None, "cpu", repeats=5, warmup=1, seconds=1.0).samples) == 5
    assert len(measure(lambda: None, "cpu", repeats=2, warmup=1).samples) == 2
    assert (
        len(measure(lambda: None, "cpu", repeats=2, warmup=1, seconds=1e9).samples)
        == timing.MAX_RUNS
    )


@pytest.mark.parametrize("counts", [{"repeats": 0}, {"warmup": 0}])
def test_at_least_one_run(counts):
    with pytest.raises(ValueError, match="at least 1"):
        measure(lambda: None, "cpu", **counts)


@pytest.mark.skipif(
    peak_memory.resident() is None, reason="this system does not tell resident memory"
)
def test_peak_counts_what_was_freed_again():
    size = 64 * 2**20
    with peak_memory.Peak("cpu") as first:
        block = torch.ones(size // 4)
        del block
    assert first.bytes is not None
    assert size * 0.9 < first.bytes < size * 3
    with peak_memory.Peak("cpu") as second:
        pass
    assert second.bytes is not None
    assert second.bytes < size / 2  # an earlier peak is not charged to a later block


@pytest.fixture
def hollow() -> Iterator[None]:
    """Twice 64 MiB that the C library keeps of freed pieces: they are small enough for the heap,
    and the last one holds the others there.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    pieces = [libc.malloc(60_000) for _ in range(2 * 64 * 2**20 // 60_000)]
    for piece in pieces:
        ctypes.memset(piece, 1, 60_000)
    for piece in pieces[:-1]:
        libc.free(piece)
    yield
    libc.free(pieces[-1])


glibc_only = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="the C library is not glibc",
)


@glibc_only
@pytest.mark.usefixtures("hollow")
def test_peak_counts_what_fits_into_memory_that_was_freed_before_the_block():
    size = 64 * 2**20
    with peak_memory.Peak("cpu") as peak:
        block = torch.ones(size // 4)
        del block
    assert peak.bytes is not None
    assert size * 0.9 < peak.bytes < size * 3


def count_from_before_the_block() -> None:
    before = peak_memory.settled_resident()
    size = 64 * 2**20
    block = torch.ones(size // 4)
    with peak_memory.Peak("cpu", since=before) as peak:
        pass
    assert block.sum() and peak.bytes is not None
    assert size * 0.9 < peak.bytes < size * 3
    assert peak.reserved is None


@pytest.mark.skipif(
    peak_memory.resident() is None, reason="this system does not tell resident memory"
)
def test_peak_may_count_from_before_the_block():
    count_from_before_the_block()


@glibc_only
@pytest.mark.usefixtures("hollow")
def test_peak_may_count_from_before_a_block_in_memory_that_was_freed():
    count_from_before_the_block()


@pytest.fixture
def gpu(monkeypatch):
    """torch's accounts of a GPU that has allocated 70 bytes, reserved 90, and holds segments of a
    graph."""
    events: list[str] = []
    segments = [
        {"device": 0, "segment_pool_id": (0, 0), "total_size": 50, "allocated_size": 20},
        {"device": 0, "segment_pool_id": (0, 3), "total_size": 30, "allocated_size": 10},
        {"device": 1, "segment_pool_id": (0, 3), "total_size": 40, "allocated_size": 0},
    ]

    def forget(device):
        events.append("reset")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("empty"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forget)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: list(segments))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 90)
    return events, segments


def test_peak_of_a_gpu_counts_what_graphs_keep(gpu):
    events, segments = gpu
    with peak_memory.Peak("cuda:0") as peak:
        assert events == ["empty", "reset"]
        # What a graph takes while it is recorded is allocated for that time, and not to be counted
        # twice.
        segments.append(
            {"device": 0, "segment_pool_id": (0, 4), "total_size": 8, "allocated_size": 0}
        )
    assert peak.bytes == 70 + 20
    assert peak.reserved == 90
    assert peak_memory.graph_bytes(torch.device("cuda:1")) == 40


def test_peak_survives_an_error():
    peak = peak_memory.Peak("cpu")
    with pytest.raises(KeyError), peak:
        raise KeyError
    assert peak_memory.resident() is None or peak.bytes is not None


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "absent")
    assert peak_memory.resident() is None
    with peak_memory.Peak("cpu") as peak:
        pass
    assert peak.bytes is None
    if sys.platform != "win32":
        assert peak_memory.peak_resident() > 2**20


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
        "cpu_kind",
        "threads",
        "tf32",
        "capability",
        "settings",
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


def test_settings_that_change_figures_are_in_the_stamp(monkeypatch):
    for name in environment.settings():
        monkeypatch.delenv(name)
    assert environment.stamp()["settings"] == {}
    monkeypatch.setenv("TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS", "TRITON,ATEN")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/tmp/cache")
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/usr/bin/ptxas")
    monkeypatch.setenv("TRITON_OTHER", "/usr/lib/other")
    assert environment.stamp()["settings"] == {
        "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS": "TRITON,ATEN",
        "TRITON_OTHER": "a path",
    }


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
    installed = (
        tmp_path / "venv" / "site-packages" / "samfast"
    )  # inside a checkout of something else
    installed.mkdir(parents=True)
    assert environment._commit(installed) == (None, None)


def test_no_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.stamp()["commit"] is None


def test_the_stamp_imports_no_triton():
    code = (
        "import sys; from samfast.bench.environment import stamp; stamp(); sys.exit('triton' "
        "in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
