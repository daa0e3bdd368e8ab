"""The profile's folder on a CPU, and the arithmetic of a GPU's on a trace written by hand."""

from __future__ import annotations

import errno
import gzip
import json
import os
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from samfast import Prompts
from samfast.bench import profiler
from samfast.bench.profiler import (
    REGIONS,
    SNAPSHOT,
    STEPS,
    SUMMARY,
    TRACE,
    Stages,
    profile,
    summarize,
    watched,
)
from samfast.errors import DeviceMemoryError, ImageError, OutputError
from samfast.recipes import get
from tests.bench.test_trace_events import event
from tests.model.tiny import fast, random_sam

PLAIN = get("fp32_sdpa")
PHOTO = np.zeros((40, 60, 3), np.uint8)
CLICKS = Prompts(points=[[[5, 6]], [[10, 20]]], labels=[[1], [1]])
ONCE = {"repeats": 1}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(batch_size=2, recipe=PLAIN):
    return fast(random_sam(), recipe, recipe_name="fp32_sdpa", batch_size=batch_size)


@pytest.fixture(scope="module")
def sam():
    return tiny()


@pytest.fixture(scope="module")
def profiled(sam, tmp_path_factory):
    """A folder, and the summary that was written into it."""
    out = tmp_path_factory.mktemp("profiles") / "deep" / "folder"
    steps: list[int] = []
    result = profile(sam, out, images=[PHOTO], points=3, repeats=2, progress=steps.append)
    assert sum(steps) == STEPS
    return out, result


def regions_in(out):
    """The trace's regions by start: (name, start, end)."""
    trace = json.loads(gzip.decompress((out / TRACE).read_bytes()))["traceEvents"]
    annotations = [e for e in trace if e.get("cat") == "user_annotation"]
    return sorted(
        ((e["name"], e["ts"], e["ts"] + e["dur"]) for e in annotations), key=lambda e: e[1]
    )


def test_the_folder_is_complete(profiled):
    out, result = profiled
    assert sorted(path.name for path in out.iterdir()) == sorted([SUMMARY, TRACE])
    assert result["files"] == [TRACE, SUMMARY]
    assert json.loads((out / SUMMARY).read_text()) == result
    assert result["workload"] == {
        "images": 1,
        "sizes": [[40, 60]],
        "points": 3,
        "repeats": 2,
        "batch_size": 2,
    }
    assert result["environment"]["torch"] == torch.__version__
    assert result["waits"] is None
    memory = result["memory"]
    assert memory["peak_bytes"] is None or memory["peak_bytes"] >= 0
    assert memory["reserved_bytes"] is None


def test_times_are_of_one_run(profiled):
    _, result = profiled
    regions = result["regions"]
    assert tuple(regions) == (*REGIONS, "outside")
    host = [row["host_seconds"] for row in regions.values()]
    assert min(host) > 0
    # between two runs there is next to nothing
    assert 0.5 * result["seconds"]["traced"] < sum(host) <= result["seconds"]["traced"]
    assert result["seconds"]["alone"] > 0
    assert result["idle_share"] is None and result["idle_share_alone"] is None
    assert {row["gpu_busy_seconds"] for row in regions.values()} == {None}
    by_name = {row["name"]: row for row in result["kernels"]}
    product = by_name["aten::addmm"]
    assert (product["calls"] % 1, product["class"]) == (0, "matmul")
    assert product["regions"] == ["encoder", "decoder"]
    assert sum(row["share"] for row in result["kernels"]) == pytest.approx(1)
    assert sum(row["ms"] for row in result["kernels"]) / 1e3 <= sum(host)


def test_the_trace_has_the_regions_in_their_order(profiled):
    out, _ = profiled
    summary = regions_in(out)
    assert [name for name, _, _ in summary].count("run") == 2
    stages = [region for region in summary if region[0] in REGIONS]
    assert [name for name, _, _ in stages] == list(REGIONS) * 2
    assert all(ended <= began for (_, _, ended), (_, began, _) in pairwise(stages))


def test_files_are_read_and_no_more_than_a_batch(tmp_path):
    for index in range(3):
        Image.fromarray(PHOTO[: 20 + index]).save(tmp_path / f"{index}.png")
    photos = [tmp_path / f"{index}.png" for index in range(3)]
    result = profile(tiny(), tmp_path / "out", images=photos, points=1, **ONCE)
    assert result["workload"]["sizes"] == [[20, 60], [21, 60]]
    assert result["workload"]["points"] == 2


@pytest.mark.parametrize(
    "recipe",
    [
        PLAIN,
        replace(PLAIN, prompts="nested"),
        replace(PLAIN, prompts="packed"),
        replace(PLAIN, prompts="packed", fuse=True),
    ],
    ids=["looped", "nested", "packed", "fused"],
)
def test_every_decoder_enters_the_stages(recipe):
    assert stages_of(tiny(recipe=recipe)) == list(REGIONS)


def test_a_graph_that_calls_no_module_enters_the_stages():
    sam = tiny(recipe=replace(PLAIN, prompts="packed"))
    features = sam.encode(torch.zeros(1, 3, 128, 128))
    sam.encode = lambda pixels: features.clone()  # type: ignore[assignment]
    replayed = []

    def graphs(key, static, fill, run, take):
        replayed.append(key)
        empty = torch.zeros(2, 3, 32, 32), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
        take(empty)

    sam.decode.graphs = graphs
    assert stages_of(sam) == list(REGIONS)
    assert len(replayed) == 1
    assert sam.decode.graphs is graphs


def stages_of(sam):
    """The stages that one image enters."""
    entered: list[str] = []

    class Listed(Stages):
        def enter(self, name):
            if name is not None and entered[-1:] != [name]:
                entered.append(name)
            super().enter(name)

    stages = Listed()
    with watched(sam, stages):
        stages.enter("preprocess")
        sam.predict(sam.embed([PHOTO]), [CLICKS])
    return entered


def test_the_model_is_left_as_it_was(tmp_path, monkeypatch):
    sam = tiny(1)
    encode, decode = sam.encode, sam.decode

    def interrupted(*given):
        raise KeyboardInterrupt

    profile(sam, tmp_path / "a", images=[PHOTO], **ONCE)
    monkeypatch.setattr(sam, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile(sam, tmp_path / "b", images=[PHOTO], **ONCE)
    assert sam.encode is encode and sam.decode is decode
    assert not any(module._forward_pre_hooks for module in sam.model.modules())
    assert list((tmp_path / "b").iterdir()) == []


def test_a_device_without_enough_memory(tmp_path, monkeypatch):
    sam = tiny()

    def full(images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(sam, "embed", full)
    with pytest.raises(DeviceMemoryError, match=r"2 images.*--batch-size"):
        profile(sam, tmp_path, images=[PHOTO, PHOTO])


def test_a_bad_image_is_reported_before_anything_runs(sam, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for images in ([tmp_path / "broken.png"], [PHOTO, tmp_path / "absent.png"]):
        with pytest.raises(ImageError, match=images[-1].name):
            profile(sam, tmp_path / "out", images=images)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", [TRACE, SUMMARY])
@pytest.mark.parametrize(
    "trouble", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()]
)
def test_an_unfinished_profile_has_no_summary(tmp_path, monkeypatch, file, trouble):
    """The disk fills up, or Ctrl-C comes; an older profile lies in the folder."""
    for name in (SUMMARY, TRACE, SNAPSHOT):
        (tmp_path / name).write_text("older")
    move = os.replace

    def stop(source, target):
        if os.path.basename(target) == file:
            raise trouble
        move(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OutputError if isinstance(trouble, OSError) else KeyboardInterrupt):
        profiler._write(tmp_path, {TRACE: b"trace", SUMMARY: b"{}"})
    assert {path.name for path in tmp_path.iterdir()} == {TRACE}  # nor temporary files
    monkeypatch.undo()
    profiler._write(tmp_path, {TRACE: b"trace", SUMMARY: b"{}"})
    assert (tmp_path / SUMMARY).read_bytes() == b"{}"


def test_a_gpus_time_by_region_and_kernel():
    trace = {
        "traceEvents": [
            event("user_annotation", "run", 0, 100),
            event("user_annotation", "encoder", 0, 60),
            event("user_annotation", "masks", 60, 90),
            event("user_annotation", "run", 100, 200),
            event("user_annotation", "encoder", 100, 160),
            event("user_annotation", "masks", 160, 190),
            event("cuda_runtime", "cudaGraphLaunch", 10, 12, link=1),
            event("cuda_driver", "cuLaunchKernelEx", 70, 71, link=2),
            event("cuda_runtime", "cudaGraphLaunch", 110, 112, link=3),
            event("cuda_driver", "cuLaunchKernelEx", 170, 171, link=4),
            event("kernel", "gemm", 20, 80, link=1),
            event("kernel", "_rows", 90, 100, link=2),
            event("kernel", "gemm", 120, 180, link=3),
            event("kernel", "_rows", 210, 240, link=4),
        ]
    }
    summary = summarize(trace, 2, 100e-6, on_gpu=True)
    assert summary["seconds"]["traced"] == pytest.approx(120e-6)  # until the last kernel has ended
    assert summary["idle_share"] == pytest.approx((20 + 10 + 20 + 30) / 240)
    assert summary["idle_share_alone"] == pytest.approx(0.2)
    encoder, masks = summary["regions"]["encoder"], summary["regions"]["masks"]
    assert encoder == {
        "host_seconds": pytest.approx(60e-6),
        "gpu_busy_seconds": pytest.approx(60e-6),
        "gpu_idle_seconds": pytest.approx(20e-6),
        "idle_share": pytest.approx(0.25),
    }
    assert masks["gpu_busy_seconds"] == pytest.approx(20e-6)
    assert masks["gpu_idle_seconds"] == pytest.approx(20e-6)
    assert summary["regions"]["decoder"]["idle_share"] is None
    assert summary["regions"]["outside"]["host_seconds"] == pytest.approx(10e-6)
    assert [(row["name"], row["calls"], row["regions"]) for row in summary["kernels"]] == [
        ("gemm", 1, ["encoder"]),
        ("_rows", 1, ["masks"]),
    ]


@pytest.fixture
def gpu(monkeypatch):
    """A GPU's allocator in use, and how its history was asked for."""
    asked: list[tuple] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(
        memory, "_record_memory_history", lambda *given, **named: asked.append(given)
    )
    monkeypatch.setattr(memory, "_snapshot", lambda: {"segments": [], "device_traces": []})
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 812)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 900)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", list)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    return asked


def test_a_gpus_allocator_is_recorded_for_one_run_only(gpu):
    memory, snapshot = profiler._memory(lambda: None, torch.device("cuda", 1))
    assert memory == {"peak_bytes": 812, "reserved_bytes": 900, "before_bytes": 300}
    assert snapshot is not None
    assert gpu == [("all",), (None,)]

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profiler._memory(interrupted, torch.device("cuda", 1))
    assert gpu[-1] == (None,)


def test_profiling_gives_no_warnings(sam, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profile(sam, tmp_path, images=[PHOTO], **ONCE)
