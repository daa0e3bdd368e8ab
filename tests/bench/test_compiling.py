from __future__ import annotations

import sys

import pytest
import torch

from samfast.bench.compiling import Compilations

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_graphs_that_torch_s_cache_had_not_are_counted():
    from torch._dynamo.utils import counters

    with Compilations(CPU) as seen:
        counters["inductor"]["fxgraph_cache_miss"] += 2
        counters["inductor"]["fxgraph_cache_hit"] += 5
    assert seen.count == 2
    counters["inductor"]["fxgraph_cache_miss"] -= 2
    with Compilations(CPU) as seen:
        pass
    assert seen.count == 0


def test_kernels_that_triton_s_cache_had_not_are_counted():
    knobs = pytest.importorskip("triton").knobs
    former = knobs.compilation.listener
    with Compilations(CUDA) as seen:
        for hit in (False, True, False):
            knobs.compilation.listener(
                src=None, metadata={}, metadata_group={}, times=None, cache_hit=hit
            )
    assert seen.count == 2
    assert knobs.compilation.listener is former


def test_nothing_is_imported_on_a_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with Compilations(CPU) as seen:
        pass
    with Compilations(CUDA) as seen:  # without Triton there is nothing of its to count
        pass
    assert seen.count == 0
