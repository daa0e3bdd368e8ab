"""Photos, a tiny engine in place of the command line's, and the files of a run to compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from samfast.cli import run_command, run_devices
from samfast.cli.main import main
from tests.serve.running import picture, tiny_engine

FREE = (
    "pred_iou_thresh=0",
    "stability_score_thresh=0",
    "points_per_side=4",
    "crop_n_layers=1",
)
"""Options with which random weights find masks."""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of seven photos in two folders, and other files."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(7):
        place = folder / "more" if number % 2 else folder
        (place / f"{number}.png").write_bytes(picture(number, 60 + 10 * number))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(picture(9))
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`samfast run SOURCE --out OUT ...` with the tiny engine: exit code, stdout, stderr.

    With everything=True, the default, options follow that find masks.
    """
    monkeypatch.setattr(run_devices, "load_model", lambda args: tiny_engine(args.batch_size or 1))

    def call(source: object, out: object, *options: object, everything: bool = True):
        argv = ["run", source, "--out", out, "--shard-size", 2, *options]
        if everything:
            argv += ["--everything", *FREE]
        code = main([str(each) for each in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def files(out: Path) -> dict[str, bytes]:
    """The content of every file of a run but its lock."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != run_command.LOCK
    }
