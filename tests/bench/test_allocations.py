"""Memory replayed from hand-made events, and from those that PyTorch makes on a CPU."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity

import samfast
from samfast.bench import allocations
from samfast.bench.allocations import MOST, NO_OPERATOR, NOWHERE, Change, Live, replay
from samfast.bench.events import Span

CHANGES = [
    Change(0, 1, 100, "encoder"),
    Change(10, 2, 50, "decoder"),
    Change(20, 3, 60, "encoder"),  # 210, and 300 from before
    Change(30, 1, -100),
    Change(40, 9, -80),  # of what was there before
    Change(50, 1, 120, "masks"),
    Change(60, 4, 1, "masks"),
    Change(100, 4, -1),
]


def test_the_peak_and_what_lay_there_then():
    history = replay(CHANGES, before=300, parts=10)
    assert (history.peak, history.time, history.before) == (510, 20, 300)
    assert history.live == (Live("encoder", 160, 2), Live("decoder", 50, 1))
    levels = [moment.bytes for moment in history.moments]
    #         0-10 10-20 20-30 30-40 40-50 50-60 ...
    assert levels == [450, 510, 510, 410, 450, 451, 451, 451, 451, 451]
    assert history.moments[4].before == 220
    assert history.moments[-1].by_label == {"decoder": 50, "encoder": 60, "masks": 121}


def test_a_later_peak_of_less_memory_from_before():
    history = replay(
        [Change(0, 9, -300), Change(1, 1, 350, "late"), Change(2, 1, 10, "again")], before=300
    )
    assert (history.peak, history.time, history.before) == (350, 1, 0)
    assert history.live == (
        Live("late", 350, 1),
    )  # of an address taken twice the first piece is gone
    assert history.moments[-1].bytes == 350
    assert len(history.moments) == 600


def test_nothing_happened():
    history = replay([], before=7)
    assert (history.peak, history.live, history.moments) == (7, (), ())
    one = replay([Change(5, 1, 10, "all")])
    assert (one.peak, one.time) == (10, 5)
    assert one.moments[-1].bytes == 10


def test_labels_of_a_snapshot_are_lines():
    package = Path(samfast.__file__).parent
    library = {"filename": torch.__file__, "line": 1, "name": "empty"}
    engine = {"filename": str(package / "engine.py"), "line": 20, "name": "embed"}
    op = {"filename": str(package / "masks" / "op.py"), "line": 30, "name": "masks"}
    entries = [
        {"action": "segment_alloc", "addr": 0, "size": 2**20, "frames": [op], "time_us": 1},
        {"action": "alloc", "addr": 0, "size": 512, "frames": [library, op, engine], "time_us": 2},
        {"action": "alloc", "addr": 512, "size": 100, "frames": [library], "time_us": 3},
        {"action": "free_requested", "addr": 0, "size": 512, "frames": [], "time_us": 4},
        {"action": "free_completed", "addr": 0, "size": 512, "frames": [], "time_us": 9},
    ]
    assert allocations.of_snapshot(entries) == [
        Change(2, 0, 512, "samfast/masks/postprocess.py:30 in masks"),
        Change(3, 512, 100, NOWHERE),
        Change(9, 0, -512),
    ]


def test_a_cpus_memory_by_operator(tmp_path):
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        a = torch.ones(1000, 1000)
        b = a @ a
        c = b.relu()
        del a, b
        d = c.sum()
    seen.export_chrome_trace(str(tmp_path / "trace.json"))
    recorded = allocations.on_cpu(json.loads((tmp_path / "trace.json").read_text()), [])
    assert d == 1e9
    assert recorded.by == "operator"
    assert recorded.history.peak == pytest.approx(12e6, rel=1e-3)
    sizes = {own.label: own.bytes for own in recorded.history.live}
    assert sizes["aten::ones"] == sizes["aten::matmul"] == sizes["aten::relu"] == 4_000_000
    assert NO_OPERATOR not in sizes
    assert recorded.history.moments[-1].bytes < 9e6


@pytest.fixture
def gpu(monkeypatch):
    """A GPU's allocator that has 300 bytes in use, takes 100 on device 1, and notes how it was
    asked to record."""
    asked: list[tuple] = []
    entry = {"action": "alloc", "addr": 1, "size": 100, "frames": [], "time_us": 1}
    snapshot = {"segments": [], "device_traces": [[], [entry]]}
    memory = torch.cuda.memory
    monkeypatch.setattr(
        memory, "_record_memory_history", lambda *given, **named: asked.append((given, named))
    )
    monkeypatch.setattr(memory, "_snapshot", lambda: snapshot)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 812)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(allocations, "graph_bytes", lambda device: 7)
    return asked


def test_a_gpus_allocator_is_watched_for_one_run(gpu):
    regions = [Span("encoder", 0, 5)]
    recorded = allocations.on_gpu(lambda: regions, torch.device("cuda", 1))
    history = recorded.history
    assert (history.peak, history.before, history.live) == (400, 300, (Live(NOWHERE, 100, 1),))
    assert recorded.regions == tuple(regions)
    assert (recorded.reported_peak, recorded.graph_bytes, recorded.incomplete) == (812, 7, False)
    assert recorded.snapshot is not None
    assert pickle.loads(recorded.snapshot)["device_traces"][1][0]["size"] == 100
    first, last = gpu
    assert first == (("all",), {"context": "alloc", "stacks": "python", "max_entries": MOST})
    assert last == ((None,), {})


def test_watching_ends_when_the_run_is_interrupted(gpu):
    def run():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        allocations.on_gpu(run, torch.device("cuda", 1))
    assert gpu[-1] == ((None,), {})


def test_a_history_that_is_too_long_is_told(gpu, monkeypatch):
    monkeypatch.setattr(allocations, "MOST", 1)
    assert allocations.on_gpu(list, torch.device("cuda", 1)).incomplete
