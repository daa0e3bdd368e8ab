"""Waits and their lines, by warnings such as PyTorch gives on a GPU."""

from __future__ import annotations

import warnings
from traceback import FrameSummary

import pytest
import torch

import samfast
from samfast.bench import sync_waits
from samfast.bench.sync_waits import described, noted

SAYS = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:138.)"


def test_lines_are_told_from_the_folder_they_belong_to(tmp_path, monkeypatch):
    engine = FrameSummary(samfast.__file__.replace("__init__", "engine"), 7, "predict")
    assert described(engine) == "samfast/engine.py:7 in predict"
    assert described(FrameSummary("/srv/me/label.py", 3, "main")) == "/srv/me/label.py:3 in main"
    monkeypatch.chdir(tmp_path)
    mine = FrameSummary(str(tmp_path / "mine" / "label.py"), 3, "main")
    assert described(mine) == "mine/label.py:3 in main"


def warned_of(region):
    with noted(lambda: region[0]) as waits:
        for name in ("prompts", "prompts", "masks"):
            region[0] = name
            warnings.warn(SAYS, UserWarning, stacklevel=1)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("something else", UserWarning, stacklevel=1)
    return waits


def test_warnings_are_counted_by_line_and_region():
    shown = warnings.showwarning
    with pytest.warns(UserWarning, match="something else") as others:
        first, second = warned_of([""])
    assert warnings.showwarning is shown
    assert len(others) == 1
    assert (first["region"], first["calls"]) == ("prompts", 2)
    assert (second["region"], second["calls"]) == ("masks", 1)
    assert first["line"] == second["line"] == first["stack"][0]
    assert first["line"].startswith("tests/bench/test_sync_waits.py:")
    assert first["line"].endswith(" in warned_of")


def test_the_line_is_the_users_and_not_pytorchs(monkeypatch):
    """PyTorch's warning comes from a line of PyTorch, as that of `Tensor.item` may."""
    torch_line = FrameSummary(torch.__file__, 9, "wrapped")
    mine = FrameSummary("/srv/me/label.py", 3, "main")
    for stack, line in (([torch_line, mine], mine), ([torch_line], torch_line)):
        monkeypatch.setattr(sync_waits, "_stack", lambda stack=stack: stack)
        with noted(lambda: "masks") as waits:
            warnings.warn(SAYS, UserWarning, stacklevel=1)
        assert [row["line"] for row in waits] == [described(line)]
        assert len(waits[0]["stack"]) == len(stack)


def waiting(notes):
    with noted(lambda: "outside") as waits:
        notes.append(waits)
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
    assert [row["line"].rpartition(" ")[2] for row in notes[0]] == ["waiting", "waiting"]
    assert (torch.cuda.synchronize, torch.cuda.Event.synchronize) == before
