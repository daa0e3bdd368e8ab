"""Automatic masks by all the kernels of `samfast.masks` together are those of plain torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from samfast.masks import cutouts, memory, nms, op, runs, strings
from samfast.masks.kernels import greedy, overlaps, tiles
from tests.masks.test_memory import generate

SMALL = {"size": (60, 80), "points_per_side": 4, "crop_n_layers": 0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has it there; here it is the interpreter's")
def test_everything_in_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    want = generate(**SMALL)
    assert len(want) >= 3
    plan, ran = memory.plan, set()
    monkeypatch.setattr(memory, "plan", lambda *args: replace(plan(*args), held=1 << 40))  # as on a GPU
    for module in (op, runs, strings, nms, cutouts):
        monkeypatch.setattr(module, "has_triton", lambda device, name=module.__name__: ran.add(name) or True)
    launched = []
    for kernel in (greedy, overlaps, tiles):
        launch = kernel.launch
        monkeypatch.setattr(
            kernel,
            "launch",
            lambda *a, own=launch, name=kernel.__name__, **k: launched.append(name) or own(*a, **k),
        )
    assert generate(**SMALL) == want
    assert ran == {module.__name__ for module in (op, runs, strings, nms, cutouts)}
    assert {*launched} == {kernel.__name__ for kernel in (greedy, overlaps, tiles)}
