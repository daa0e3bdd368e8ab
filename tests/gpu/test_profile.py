"""What a profile sees on a GPU: each region's kernels, in graphs too, waits and memory."""

from __future__ import annotations

import gzip
import json
import pickle

import pytest
import torch

from samfast.bench.profiler import REGIONS, SNAPSHOT, SUMMARY, TRACE, profile
from tests.gpu.test_encoder_steps import load, photos

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.gpu_alone,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=["bf16_folded", "fused"])
def profiled(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    sam = load(request.param)
    return sam, out, profile(sam, out, images=photos(4), points=3, repeats=2)


def test_each_region_has_its_kernels(profiled):
    sam, _, result = profiled
    regions = result["regions"]
    busy = {name: row["gpu_busy_seconds"] for name, row in regions.items()}
    # pixels and prompts are copied there, the rest is computed
    assert all(busy[name] > 0 for name in REGIONS), busy
    assert busy["outside"] < 0.02 * sum(busy.values())
    assert max(busy, key=busy.__getitem__) in ("encoder", "decoder")
    spent = sum(row["gpu_busy_seconds"] + row["gpu_idle_seconds"] for row in regions.values())
    assert spent == pytest.approx(result["seconds"]["traced"], rel=1e-6)
    idle = sum(row["gpu_idle_seconds"] for row in regions.values())
    assert result["idle_share"] == pytest.approx(idle / spent)
    assert 0 < result["idle_share"] < 1
    assert 0 <= result["idle_share_alone"] < 1
    rows = {row["name"]: row for row in result["kernels"]}
    attention = [row for row in rows.values() if row["class"] == "attention"]
    assert any("encoder" in row["regions"] for row in attention), rows
    if sam.recipe.graphed:
        assert sam.encode.graph is not None and sam.decode.graphs is not None
        calls = sum(row["calls"] for row in result["kernels"])
        assert calls > 50  # a replay is one call of the host and all of the graph's kernels


def test_nothing_waits_between_the_stages(profiled):
    _, out, result = profiled
    assert result["waits"] == []
    trace = json.loads(gzip.decompress((out / TRACE).read_bytes()))["traceEvents"]
    runs = [
        (e["ts"], e["ts"] + e["dur"]) for e in trace if e.get("name") == "run" and e["ph"] == "X"
    ]
    waits = [e["ts"] for e in trace if "Synchronize" in e.get("name", "") and e.get("ph") == "X"]
    assert not [ts for ts in waits if runs[0][0] <= ts <= runs[-1][1]]


def test_the_files_are_torchs_own(profiled):
    _, out, result = profiled
    assert {path.name for path in out.iterdir()} == {TRACE, SNAPSHOT, SUMMARY}
    assert json.loads((out / SUMMARY).read_text()) == result
    snapshot = pickle.loads((out / SNAPSHOT).read_bytes())
    assert {"segments", "device_traces"} <= set(snapshot)
    assert any(snapshot["device_traces"])


def test_a_wait_is_told_with_its_line(tmp_path, monkeypatch):
    sam = load("bf16_folded")
    predict = sam.predict

    def looks(embeddings, prompts):
        answers = predict(embeddings, prompts)
        embeddings.features[0, 0, 0, 0].item()
        torch.cuda.synchronize()
        return answers

    monkeypatch.setattr(sam, "predict", looks)
    result = profile(sam, tmp_path, images=photos(1), points=1, repeats=1)
    waits = result["waits"]
    assert len({row["line"] for row in waits}) == len(waits) == 2
    assert all(" in looks" in row["line"] and "test_profile.py:" in row["line"] for row in waits)
    assert [row["calls"] for row in waits] == [1, 1]
    assert all(row["region"] == "masks" for row in waits)
    assert torch.cuda.get_sync_debug_mode() == 0


def test_memory_at_its_peak(tmp_path):
    sam = load("bf16_folded", image_size=1024)
    memory = profile(sam, tmp_path, images=photos(4), points=3, repeats=1)["memory"]
    weights = sum(p.numel() * p.element_size() for p in sam.model.parameters())
    assert weights <= memory["before_bytes"] < memory["peak_bytes"] - 2**20
    assert memory["peak_bytes"] <= memory["reserved_bytes"]
