"""The profile's folder, on a CPU; what a GPU adds is in tests/gpu, and its arithmetic here by a
hand-made trace."""

from __future__ import annotations

import errno
import gzip
import json
import os
import tempfile
import warnings
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from samfast.bench import allocations, pages
from samfast.bench import profile as module
from samfast.bench.profile import (
    DATA,
    INDEX,
    MEMORY,
    SNAPSHOT,
    STEPS,
    TRACE,
    describe,
    profile,
    summary,
)
from samfast.bench.stages import REGIONS
from samfast.errors import DeviceMemoryError, ImageError, InputError, OutputError
from samfast.recipes import get
from tests.bench.test_events import event
from tests.model.tiny import fast, random_sam


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(batch_size=2):
    recipe = get("fp32_sdpa")
    return fast(random_sam(), recipe, recipe_name="fp32_sdpa", batch_size=batch_size)


@pytest.fixture(scope="module")
def sam():
    return tiny()


PHOTO = np.zeros((40, 60, 3), np.uint8)
ONCE = {"repeats": 1, "warmup": 1}


@pytest.fixture(scope="module")
def profiled(sam, tmp_path_factory):
    """A folder, and what was written into it."""
    out = tmp_path_factory.mktemp("profiles") / "deep" / "folder"
    steps: list[int] = []
    result = profile(
        sam, out, images=[PHOTO], points=3, repeats=2, warmup=1, top=5, progress=steps.append
    )
    assert sum(steps) == STEPS
    return out, result


def test_the_folder_is_complete(profiled):
    out, result = profiled
    assert sorted(path.name for path in out.iterdir()) == sorted([INDEX, DATA, MEMORY, TRACE])
    assert sorted(result["files"]) == sorted([INDEX, DATA, MEMORY, TRACE])
    assert json.loads((out / DATA).read_text()) == result
    assert result["workload"] == {
        "images": 1,
        "sizes": [[40, 60]],
        "points": 3,
        "automatic": False,
        "options": {},
        "repeats": 2,
        "batch_size": 2,
    }
    assert result["environment"]["torch"] == torch.__version__


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
    assert len([name for name in by_name if not name.startswith("...")]) == 5
    product = by_name["aten::addmm"]
    assert (product["calls"] % 1, product["class"]) == (0, "matmul")
    assert product["regions"] == ["encoder", "decoder"]
    assert sum(row["share"] for row in result["kernels"]) == pytest.approx(1)
    assert sum(row["ms"] for row in result["kernels"]) / 1e3 <= sum(host)


def test_the_trace_has_the_regions_in_their_order(profiled):
    out, _ = profiled
    trace = json.loads(gzip.decompress((out / TRACE).read_bytes()))
    annotated = [e for e in trace["traceEvents"] if e.get("cat") == "user_annotation"]
    assert len([e for e in annotated if e["name"] == "run"]) == 2
    spans = sorted(
        (e["ts"], e["ts"] + e["dur"], e["name"]) for e in annotated if e["name"] in REGIONS
    )
    assert [name for _, _, name in spans] == list(REGIONS) * 2
    assert all(ended <= began for (_, ended, _), (began, _, _) in pairwise(spans))
    patches = min(e["ts"] for e in trace["traceEvents"] if e.get("name") == "aten::conv2d")
    began, ended, name = spans[1]
    assert name == "encoder" and began <= patches <= ended


def test_memory_by_operator(profiled):
    _, result = profiled
    memory = result["memory"]
    assert memory["by"] == "operator"
    assert memory["peak_bytes"] >= sum(row["bytes"] for row in memory["allocations"]) > 0
    sizes = [row["bytes"] for row in memory["allocations"]]
    assert sizes == sorted(sizes, reverse=True)
    assert all(row["operator"].startswith("aten::") for row in memory["allocations"])
    assert memory["reported_peak_bytes"] is None
    assert "need a GPU" in memory["remarks"][0]


class Reader(HTMLParser):
    """Whatever a page loads or links to, and whether its tags fit each other."""

    def __init__(self, page):
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def test_pages_need_nothing_but_their_folder(profiled):
    out, result = profiled
    index = (out / INDEX).read_text()
    page = Reader(index)
    assert set(page.found) == {MEMORY, DATA, TRACE}
    assert not {"script", "link", "img"} & set(page.tags)
    assert "ui.perfetto.dev" in index
    assert "no GPU" in index
    assert result["environment"]["torch"] in index
    for name in (*REGIONS, "aten::addmm"):
        assert f">{name}<" in index
    memory = Reader((out / MEMORY).read_text())
    assert memory.found == []
    assert "svg" in memory.tags and "script" not in memory.tags


def test_the_terminal_gets_short_tables(profiled):
    _, result = profiled
    text = describe(result)
    assert text.startswith("tiny, recipe fp32_sdpa, ")
    assert all(f"\n{name}" in text for name in REGIONS)
    assert "1 image, 3 clicks" in text
    assert "aten::addmm" in text
    assert "memory at its peak" in text
    assert "no GPU" in text
    assert max(map(len, text.splitlines())) < 130


def test_everything_in_synthetic_images(tmp_path):
    options = {
        "points_per_side": None,
        "point_grids": [np.full((4, 2), 0.5)],
        "pred_iou_thresh": 0.0,
    }
    result = profile(tiny(), tmp_path, automatic=options, **ONCE)
    assert result["workload"]["automatic"] is True
    assert (result["workload"]["images"], result["workload"]["points"]) == (2, None)
    shown = {**options, "point_grids": repr(options["point_grids"])}
    assert result["workload"]["options"] == shown
    assert all(row["host_seconds"] > 0 for row in result["regions"].values())
    trace = json.loads(gzip.decompress((tmp_path / TRACE).read_bytes()))
    annotated = [e for e in trace["traceEvents"] if e.get("cat") == "user_annotation"]
    names = [e["name"] for e in sorted(annotated, key=lambda e: e["ts"]) if e["name"] in REGIONS]
    assert names == ["preprocess", "encoder", "prompts", "decoder", "masks"] * 2
    assert "everything in 2 images" in describe(result)


def test_files_are_read_and_no_more_than_a_batch(tmp_path):
    for index in range(3):
        Image.fromarray(PHOTO[: 20 + index]).save(tmp_path / f"{index}.png")
    result = profile(
        tiny(), tmp_path / "out", images=[tmp_path / f"{i}.png" for i in range(3)], points=1, **ONCE
    )
    assert result["workload"]["sizes"] == [[20, 60], [21, 60]]
    assert result["workload"]["points"] == 2


def test_the_model_is_left_as_it_was(tmp_path, monkeypatch):
    sam = tiny(1)
    encode, decode = sam.encode, sam.decode

    def predict(*given):
        raise KeyboardInterrupt

    for path in ("a", "b"):
        if path == "b":
            monkeypatch.setattr(sam, "predict", predict)
        try:
            profile(sam, tmp_path / path, images=[PHOTO], **ONCE)
        except KeyboardInterrupt:
            assert path == "b"
        assert sam.encode is encode and sam.decode is decode
        assert "_encode_crop" not in vars(sam)
        for own in sam.model.modules():
            assert not own._forward_hooks
            assert not own._forward_pre_hooks
    assert list((tmp_path / "b").iterdir()) == []


def test_a_device_without_enough_memory(tmp_path, monkeypatch):
    sam = tiny()

    def full(images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(sam, "embed", full)
    with pytest.raises(DeviceMemoryError, match=r"2 images.*--batch-size"):
        profile(sam, tmp_path, images=[PHOTO, PHOTO])


@pytest.mark.parametrize("name", ["points", "repeats", "warmup", "top"])
def test_counts_below_one(sam, tmp_path, name):
    with pytest.raises(InputError, match=f"{name}=0"):
        profile(sam, tmp_path / "out", images=[PHOTO], **{name: 0})
    assert not (tmp_path / "out").exists()


def test_bad_images_are_told_of_before_anything_runs(sam, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for images in ([tmp_path / "broken.png"], [PHOTO, tmp_path / "absent.png"]):
        with pytest.raises(ImageError, match=images[-1].name):
            profile(sam, tmp_path / "out", images=images)
    with pytest.raises(InputError, match="wrap it"):
        profile(sam, tmp_path / "out", images="photo.png")
    with pytest.raises(InputError, match="empty list"):
        profile(sam, tmp_path / "out", images=[])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file(sam, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="file"):
            profile(sam, out, images=[PHOTO])
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_told_of_before_anything_runs(
    sam, tmp_path, monkeypatch, number
):
    def refuse(**named):
        assert named["dir"] == tmp_path
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(sam, "embed", lambda images: pytest.fail("it ran"))
    with pytest.raises(OutputError, match=os.strerror(number)):
        profile(sam, tmp_path, images=[PHOTO])


@pytest.mark.parametrize("file", [TRACE, MEMORY, DATA, INDEX])
@pytest.mark.parametrize(
    "trouble", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()]
)
def test_what_was_not_finished_does_not_look_finished(
    profiled, tmp_path, monkeypatch, file, trouble
):
    """The disk fills up, or Ctrl-C comes, at each of the files; an older profile lies in the
    folder."""
    out, result = profiled
    for name in (INDEX, DATA, MEMORY, TRACE, SNAPSHOT):
        (tmp_path / name).write_text("older")
    replace = os.replace

    def stop(source, target):
        if os.path.basename(target) == file:
            raise trouble
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    recorded = allocations.on_cpu({"traceEvents": []}, [])
    with pytest.raises(OutputError if isinstance(trouble, OSError) else KeyboardInterrupt) as told:
        module._write(tmp_path, result, b"{}", recorded)
    if isinstance(trouble, OSError):
        assert file in str(told.value) and "free some space" in str(told.value)
    assert not (tmp_path / INDEX).exists()
    assert not (tmp_path / SNAPSHOT).exists()  # of the older one: this one has none
    assert {path.name for path in tmp_path.iterdir()} <= {
        DATA,
        MEMORY,
        TRACE,
    }  # nor temporary files
    if file != INDEX:
        assert (tmp_path / file).read_text() == "older"
    monkeypatch.undo()
    module._write(tmp_path, result, b"{}", recorded)
    assert (tmp_path / INDEX).read_bytes() == (out / INDEX).read_bytes()


def test_a_trace_that_finds_no_room(sam, tmp_path, monkeypatch):
    def short(self, path):
        with open(path, "w") as file:
            file.write('{"traceEvents": [')

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", short)
    with pytest.raises(OutputError, match=r"not whole.*TMPDIR") as told:
        profile(sam, tmp_path, images=[PHOTO], **ONCE)
    assert tempfile.gettempdir() in str(told.value)
    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", lambda self, path: None)
    with pytest.raises(OutputError, match="TMPDIR"):
        profile(sam, tmp_path, images=[PHOTO], **ONCE)
    assert list(tmp_path.iterdir()) == []


TRACED = {
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


def gpu_result(profiled, waits):
    """The result as a GPU would give it."""
    _, result = profiled
    rows = [{"line": "samfast/engine.py:7 in predict", "bytes": 3 * 2**30, "pieces": 2}]
    return {
        **result,
        **summary(TRACED, 2, top=5, on_gpu=True),
        "seconds": {"alone": 1e-4, "traced": 1.2e-4},
        "idle_share_alone": 0.2,
        "waits": waits,
        "memory": {
            "peak_bytes": 4 * 2**30,
            "before_bytes": 2**30,
            "reported_peak_bytes": 5 * 2**30,
            "graph_bytes": 2**20,
            "by": "line",
            "remarks": [],
            "allocations": rows,
        },
        "environment": {**result["environment"], "gpu": "NVIDIA <H200>"},
    }


def test_a_gpus_time_by_region_and_kernel():
    found = summary(TRACED, 2, top=5, on_gpu=True)
    assert found["seconds"]["traced"] == pytest.approx(120e-6)  # until the last kernel has ended
    assert found["idle_share"] == pytest.approx((20 + 10 + 20 + 30) / 240)
    encoder, masks = found["regions"]["encoder"], found["regions"]["masks"]
    assert encoder == {
        "host_seconds": pytest.approx(60e-6),
        "gpu_busy_seconds": pytest.approx(60e-6),
        "gpu_idle_seconds": pytest.approx(20e-6),
        "idle_share": pytest.approx(0.25),
    }
    assert masks["gpu_busy_seconds"] == pytest.approx(20e-6)
    assert masks["gpu_idle_seconds"] == pytest.approx(20e-6)
    assert found["regions"]["decoder"]["idle_share"] is None
    assert found["regions"]["outside"]["host_seconds"] == pytest.approx(10e-6)
    assert [(row["name"], row["calls"], row["regions"]) for row in found["kernels"]] == [
        ("gemm", 1, ["encoder"]),
        ("_rows", 1, ["masks"]),
    ]


def test_waits_are_told_and_so_is_their_absence(profiled):
    result = gpu_result(profiled, [])
    assert "nothing waited for the GPU" in describe(result)
    page = pages.page(result).decode()
    Reader(page)
    assert "nothing waited for the GPU" in page and "no GPU" not in page
    assert "NVIDIA &lt;H200&gt;" in page and "NVIDIA <H200>" in describe(result)
    for text in (page, describe(result)):
        assert "the GPU idles 20.0%, traced 33.3%" in text
    assert "by PyTorch&#x27;s count 5.0 GiB" in page
    row = {
        "line": "samfast/a.py:3 in <lambda>",
        "call": "cudaStreamSynchronize",
        "operators": ["aten::index", "aten::nonzero"],
        "region": None,
        "calls": 4,
        "seconds": 2e-3,
        "stack": ["samfast/a.py:3 in <lambda>", "label.py:1 in main"],
    }
    unknown = {**row, "line": None, "call": None, "operators": [], "stack": []}
    result = gpu_result(profiled, [row, unknown])
    text = describe(result)
    assert (
        "samfast/a.py:3 in <lambda> (aten::index > aten::nonzero > cudaStreamSynchronize)" in text
    )
    assert "not known (a wait that the trace does not show)" in text
    assert "nothing waited" not in text
    page = pages.page(result).decode()
    Reader(page)
    assert "samfast/a.py:3 in &lt;lambda&gt;" in page and "label.py:1 in main" in page


def test_no_warnings_but_those_that_are_known(sam, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profile(sam, tmp_path, images=[PHOTO], **ONCE)
