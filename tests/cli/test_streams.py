"""Stdout and stderr that cannot show a name, are full or closed; names that would steer a terminal.

Each command runs as a user runs it, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfast.cli.console import printable
from tests.cli.stderr_lines import complaints

ROOT = Path(__file__).resolve().parents[2]

SEGMENT = "segment . --out out --point 24,16 --device cpu --model vit_xs --checkpoint random"

ODD_NAMES = (b"b\xff.png", b"c\nd.png", b"e\x1b[31mf.png", "g\u00e9.png".encode())

posix = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def samfast(folder: Path, arguments: str, redirect: str = "", **environment: str):
    """Run a command line by a shell, with redirections; the completed process."""
    command = f'exec "{sys.executable}" -m samfast {arguments} {redirect}'
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        capture_output=True,
        timeout=280,
        env=dict(os.environ, PYTHONPATH=str(ROOT), **environment),
        check=False,
    )


def picture(path: bytes | str, folder: Path) -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[8:24, 12:36] = (200, 40, 40)
    with open(os.path.join(os.fsencode(folder), os.fsencode(path)), "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


@posix
@pytest.mark.parametrize(
    "environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-8"}]
)
def test_names_that_cannot_be_shown_are_escaped_and_all_images_are_done(tmp_path, environment):
    for name in ODD_NAMES:
        picture(name, tmp_path)
    (tmp_path / "i\nj.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    done = samfast(tmp_path, SEGMENT, **environment)
    assert done.returncode == 1
    assert done.stdout.splitlines()[:3] == [
        rb"out/b\udcff.json",
        rb"out/c\nd.json",
        rb"out/e\x1b[31mf.json",
    ]
    assert len(done.stdout.splitlines()) == len(ODD_NAMES)
    (line,) = complaints(done.stderr.decode())
    assert line.startswith(r"samfast: i\nj.png: damaged")
    written = sorted(os.listdir(os.fsencode(tmp_path / "out")))
    assert written == sorted(name.replace(b".png", b".json") for name in ODD_NAMES)


@posix
@pytest.mark.parametrize(
    ("redirect", "said"),
    [(">/dev/full", "No space left on device"), (">&-", "stdout is closed")],
)
def test_a_full_or_closed_stdout_is_said_and_all_files_are_written(tmp_path, redirect, said):
    for name in ("a.png", "b.png"):
        picture(name, tmp_path)
    done = samfast(tmp_path, SEGMENT, redirect)
    assert done.returncode == 1
    (line,) = complaints(done.stderr.decode())
    assert said in line
    for name in ("a.json", "b.json"):
        assert len(json.loads((tmp_path / "out" / name).read_text())) == 1


@posix
@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_without_stderr_results_are_as_with_it(tmp_path, redirect):
    picture("a.png", tmp_path)
    (tmp_path / "b.png").write_bytes(b"no image")
    done = samfast(tmp_path, SEGMENT, redirect)
    assert (done.returncode, done.stdout) == (1, b"out/a.json\n")
    json.loads((tmp_path / "out" / "a.json").read_text())


@posix
@pytest.mark.parametrize("arguments", ["--help", "segment --help", "--version", "models --json"])
@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
def test_what_only_prints_fails_in_one_line(tmp_path, arguments, redirect):
    done = samfast(tmp_path, arguments, redirect)
    assert done.returncode == 1
    (line,) = complaints(done.stderr.decode())
    assert line.startswith("samfast: stdout")


def test_printable():
    assert printable("out/Größe 1.png") == "out/Größe 1.png"
    assert printable("a\n\x1b]0;x\x07\udcff\u202eb") == r"a\n\x1b]0;x\x07\udcff\u202eb"
