"""Waits and their lines: by hand-made traces, and by warnings such as PyTorch gives on a GPU."""

from __future__ import annotations

import sysconfig
import warnings
from pathlib import Path

import pytest
import torch

import samfast
from samfast.bench import sync_waits
from samfast.bench.sync_waits import Frame, join, noted, user_frame, wait_table
from samfast.bench.trace_events import Span, record
from tests.bench.test_trace_events import event

SAYS = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:138.)"
ENGINE = str(Path(samfast.__file__).parent / "engine.py")
TORCH = str(Path(torch.__file__).parent / "_tensor.py")


def test_the_line_behind_a_stack():
    library = str(Path(sysconfig.get_path("stdlib")) / "contextlib.py")
    stack = [
        Frame(TORCH, 9, "wrapped"),
        Frame(library, 5, "inner"),
        Frame("<string>", 1, "<module>"),
    ]
    assert user_frame(stack) is None
    engine = Frame(ENGINE, 7, "predict")
    assert user_frame([*stack, engine, Frame("/srv/me/label.py", 3, "main")]) is engine
    assert str(engine) == "samfast/engine.py:7 in predict"
    user = user_frame([*stack, Frame("/srv/me/label.py", 3, "main"), engine])
    assert str(user) == "/srv/me/label.py:3 in main"
    assert str(Frame(str(Path.cwd() / "mine" / "label.py"), 3, "main")) == "mine/label.py:3 in main"


def test_marks_tell_of_the_calls_before_them():
    first, second, third, fourth = (
        Span("cudaStreamSynchronize", t, t + 1) for t in (0, 10, 12, 30)
    )
    elsewhere = Span("cudaStreamSynchronize", 13, 14, thread=2)
    marks = [Span(f"wait {i}", t, t) for i, t in enumerate((20, 21, 40, 41))]
    pairs = join([first, second, third, fourth, elsewhere], marks)
    assert set(pairs) == {
        (first, None),  # two marks for the two calls before them
        (second, marks[1]),
        (third, marks[0]),
        (elsewhere, None),
        (fourth, marks[2]),
        (None, marks[3]),
    }
    assert len(pairs) == 6
    assert join([], []) == []


def waited(start, link):
    """A wait of a microsecond within `item`, and its mark."""
    return [
        event("cpu_op", "aten::item", start - 2, start + 2),
        event("cpu_op", "aten::_local_scalar_dense", start - 1, start + 2),
        event("cuda_runtime", "cudaMemcpyAsync", start - 0.5, start, link=link),
        event("cuda_runtime", "cudaStreamSynchronize", start, start + 1, link=link + 1),
    ]


def test_the_table_of_waits():
    trace = {
        "traceEvents": [
            *waited(10, 1),
            event("user_annotation", "wait 0", 13, 13),
            *waited(20, 3),
            event("user_annotation", "wait 1", 23, 23),
            event("cuda_runtime", "cudaDeviceSynchronize", 30, 37, link=5),  # no line is known of
            event(
                "cuda_runtime", "cudaDeviceSynchronize", 60, 90, link=6
            ),  # the profiler's own, at the end
            event(
                "cuda_runtime", "cudaStreamWaitEvent", 38, 39, link=7
            ),  # the stream's wait, not the host's
        ]
    }
    stack = (Frame(TORCH, 9, "wrapped"), Frame(ENGINE, 7, "predict"))
    regions = [Span("prompts", 0, 25), Span("masks", 25, 50)]
    first, second = wait_table(trace, [stack, stack], regions, 0, 50)
    assert first == {
        "line": None,
        "call": "cudaDeviceSynchronize",
        "operators": [],
        "region": "masks",
        "calls": 1,
        "seconds": pytest.approx(7e-6),
        "stack": [],
    }
    assert second["line"] == "samfast/engine.py:7 in predict"
    assert second["call"] == "cudaStreamSynchronize"
    assert second["operators"] == ["aten::item", "aten::_local_scalar_dense"]
    assert (second["region"], second["calls"]) == ("prompts", 2)
    assert second["seconds"] == pytest.approx(2e-6)
    assert second["stack"][1] == second["line"]
    assert wait_table({"traceEvents": []}, [], regions, 0, 50) == []


def warned_of():
    with noted() as notes:
        for _ in range(2):
            warnings.warn(SAYS, UserWarning, stacklevel=1)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("something else", UserWarning, stacklevel=1)
    return notes


def test_copies_of_memory_that_is_not_pinned():
    """They count where nothing else in their operator waits."""
    trace = {
        "traceEvents": [
            event("cpu_op", "aten::to", 0, 10),
            event("cuda_runtime", "cudaMemcpyAsync", 1, 4, link=1),
            event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 2, 5, thread=7, link=1),
            event("cpu_op", "aten::to", 20, 30),
            event("cuda_runtime", "cudaMemcpyAsync", 21, 22, link=2),
            event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 22, 23, thread=7, link=2),
            event("cuda_runtime", "cudaStreamSynchronize", 23, 25, link=3),
            event("cpu_op", "aten::to", 40, 50),
            event("cuda_runtime", "cudaMemcpyAsync", 41, 42, link=4),
            event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 42, 43, thread=7, link=4),
        ]
    }
    first, second = wait_table(trace, [], [], 0, 50)
    assert (first["call"], first["seconds"]) == (
        "cudaMemcpyAsync of memory that is not pinned",
        pytest.approx(3e-6),
    )
    assert (second["call"], second["operators"]) == ("cudaStreamSynchronize", ["aten::to"])


def test_warnings_are_noted_with_their_lines():
    shown = warnings.showwarning
    with pytest.warns(UserWarning, match="something else") as others:
        notes = warned_of()
    assert warnings.showwarning is shown
    assert len(others) == 1
    assert len(notes) == 2 and notes[0] == notes[1]
    line = user_frame(notes[0])
    assert line is not None
    assert line.function == "warned_of"
    assert str(line).startswith("tests/bench/test_sync_waits.py:")


def waiting(notes):
    with noted() as notes_of_block:
        notes.append(notes_of_block)
        torch.cuda.synchronize("cuda:1")
        torch.cuda.Event.synchronize(None)
        raise KeyboardInterrupt


def test_explicit_waits_are_noted_and_left_as_they_were(monkeypatch):
    asked: list = []
    notes: list = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: asked.append(device))
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda self: asked.append("event"))
    before = torch.cuda.synchronize, torch.cuda.Event.synchronize
    with pytest.raises(KeyboardInterrupt):
        waiting(notes)
    assert asked == ["cuda:1", "event"]
    assert [user_frame(note).function for note in notes[0]] == ["waiting", "waiting"]
    assert (torch.cuda.synchronize, torch.cuda.Event.synchronize) == before


def test_a_mark_is_in_the_trace():
    with noted() as stacks:
        _, trace = record(
            lambda: warnings.warn(SAYS, UserWarning, stacklevel=1), torch.device("cpu")
        )
    (row,) = wait_table(trace, stacks, [], 0, float("inf"))
    assert (row["call"], row["calls"]) == (None, 1)
    assert row["line"].startswith("tests/bench/test_sync_waits.py:")
    assert sync_waits.WAITING.isdisjoint({"cudaStreamWaitEvent", "cudaLaunchKernel"})
