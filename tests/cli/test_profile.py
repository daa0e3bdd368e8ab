"""`samfast profile`: what it hands on, and the folder of a whole run; the figures are tested in
tests/bench."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import samfast
from samfast.bench import profiler
from samfast.cli import profile_command
from samfast.errors import OutputError


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for the profiler; what it was called with."""
    seen: list[tuple] = []

    def measured(sam, out, *, progress, **options):
        seen.append((out, options))
        progress(1)
        return {"files": ["profile.json"]}

    monkeypatch.setattr(profiler, "profile", measured)
    monkeypatch.setattr(profile_command, "describe", lambda result: ["op  time", "add  1 ms"])
    monkeypatch.setattr(
        profile_command, "load_model", lambda args: SimpleNamespace(batch_size=args.batch_size or 1)
    )
    return seen


DEFAULTS = {"images": None, "points": 8, "repeats": 3}


def test_defaults(run, calls):
    code, out, err = run("profile")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "op  time",
        "add  1 ms",
        "samfast-profile/profile.json: this summary as data",
    ]
    assert calls == [("samfast-profile", DEFAULTS)]


RESULT = {
    "model": "vit_b",
    "recipe": "fused",
    "workload": {"images": 1, "points": 3},
    "seconds": {"alone": 0.01, "traced": 0.02},
    "idle_share_alone": 0.2,
    "idle_share": 0.333,
    "regions": {
        "encoder": {
            "host_seconds": 0.001,
            "gpu_busy_seconds": 0.008,
            "gpu_idle_seconds": 0.002,
            "idle_share": 0.2,
        },
        "decoder": {
            "host_seconds": 0.0,
            "gpu_busy_seconds": 0.0,
            "gpu_idle_seconds": 0.0,
            "idle_share": None,
        },
    },
    "kernels": [{"name": "gemm", "class": "matmul", "calls": 2, "ms": 7.5, "share": 0.9}],
    "waits": [],
    "memory": {"peak_bytes": 4 * 2**30},
    "environment": {"gpu": "NVIDIA H200", "cpu": "Some CPU"},
}


def test_the_summary_of_a_gpu_is_short_tables():
    text = "\n".join(profile_command.describe(RESULT))
    assert text.startswith("vit_b, recipe fused, NVIDIA H200\n1 image, 3 clicks: 10.00 ms a run")
    assert "the GPU idles 20.0% of a run, 33.3% of a traced one" in text
    assert "encoder  1.00     8.00    2.00     20.0%" in text
    assert "2      7.500  90.0%  matmul  gemm" in text
    assert "nothing waited for the GPU" in text
    assert text.endswith("peak memory: 4096 MiB")
    wait = {"line": "samfast/a.py:3 in <lambda>", "region": "masks", "calls": 4, "stack": []}
    text = "\n".join(profile_command.describe({**RESULT, "waits": [wait]}))
    assert "waits  region  line" in text
    assert "4      masks   samfast/a.py:3 in <lambda>" in text
    assert "nothing waited" not in text


def test_without_a_gpu_the_summary_says_what_needs_one():
    on_cpu = {**RESULT, "waits": None, "environment": {"gpu": None, "cpu": "Some CPU"}}
    text = "\n".join(profile_command.describe(on_cpu))
    assert "no GPU: kernels" in text and "idles" not in text and "operator" in text


def test_what_is_asked_is_handed_on(run, calls, photos):
    words = (
        "--points",
        3,
        "--repeats",
        5,
        "--out",
        "there",
        "--batch-size",
        8,
    )
    code, _, err = run("profile", photos / "b.png", photos / "a.png", *words)
    assert (code, err) == (0, "")
    given = {"points": 3, "repeats": 5}
    assert calls == [("there", {"images": [photos / "b.png", photos / "a.png"], **given})]


def test_a_folder_of_more_images_than_a_batch(run, calls, photos):
    code, _, err = run("profile", photos, "--batch-size", 2)
    assert code == 0
    assert err == "samfast: the first 2 of 3 images are profiled (more: --batch-size)\n"
    assert calls[0][1]["images"] == [photos / f"{name}.png" for name in "abc"]
    assert run("profile", photos, "--batch-size", 3)[2] == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--points", 0), "'0'"),
        (("--repeats", "x"), "'x'"),
        (("--device", "cuda"), "use the device cpu"),
    ],
)
def test_a_wrong_command_line_is_one_line(run, calls, monkeypatch, words, told):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = run("profile", *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert told in err
    assert calls == []


def test_images_that_are_not_there(run, calls, photos):
    code, out, err = run("profile", photos / "a.png", "absent.png")
    assert (code, out) == (1, "")
    assert err == "samfast: absent.png: no such file or directory (check the path)\n"
    assert calls == []


@pytest.fixture
def small(monkeypatch):
    """The packaged model's architecture at a small side."""
    sam = samfast.load("vit_xs", checkpoint="random", device="cpu", image_size=128, batch_size=2)
    monkeypatch.setattr(profile_command, "load_model", lambda args: sam)
    return sam


def test_a_whole_run_and_its_mistakes(run, small, photos, monkeypatch):
    once = ("--repeats", 1, "--points", 2, "--out", "out")
    code, out, err = run("profile", photos / "a.png", *once)
    assert (code, err) == (0, "")
    assert "vit_xs" in out and "encoder" in out
    assert "out/trace.json.gz: open it in https://ui.perfetto.dev" in out
    result = json.loads((photos.parent / "out" / "profile.json").read_text())
    assert result["workload"]["points"] == 2

    summary = (photos.parent / "out" / "profile.json").read_bytes()
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    code, out, err = run("profile", photos / "broken.png", *once)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "broken.png" in err
    assert (photos.parent / "out" / "profile.json").read_bytes() == summary  # the older profile

    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(small, "predict", interrupted)
    code, out, err = run("profile", photos / "a.png", *once)
    assert (code, out) == (130, "")
    assert (photos.parent / "out" / "profile.json").read_bytes() == summary


def test_a_disk_that_is_full(run, calls, monkeypatch):
    def full(*given, **named):
        raise OutputError(
            f"out/trace.json.gz: cannot be written: {os.strerror(errno.ENOSPC)}; free some space"
        )

    monkeypatch.setattr(profiler, "profile", full)
    code, out, err = run("profile", "--out", "out")
    assert (code, out) == (2, "")
    assert err.startswith("samfast: out/trace.json.gz: cannot be written: No space left on device")


def test_images_of_one_pixel(run, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save("dot.png")
    code, _, err = run("profile", "dot.png", "--repeats", 1, "--points", 1)
    assert (code, err) == (0, "")
    assert (tmp_path / "samfast-profile" / "profile.json").is_file()


def test_a_changed_image_is_a_message_not_a_python_warning(run, tmp_path):
    Image.new("RGBA", (24, 16)).save(tmp_path / "a.png")
    options = ("--points", 1, "--repeats", 1, "--device", "cpu", "--recipe", "fp32")
    code, _, err = run("profile", tmp_path / "a.png", "--out", tmp_path / "out", *options)
    assert code == 0
    lines = [line for line in err.splitlines() if "alpha" in line]
    assert len(lines) == 1 and lines[0].startswith(f"samfast: {tmp_path / 'a.png'}: alpha was")
