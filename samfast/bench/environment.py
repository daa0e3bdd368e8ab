"""The stamp on every number: what it was measured on, with what, and when."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import samfast


def stamp(device: torch.device | str = "cpu") -> dict[str, Any]:
    """GPU and driver (None on a CPU), versions, commit, CPU, threads, TF32 and the date, ready for JSON.

    tf32 is of matrix products, tf32_convolutions of cuDNN's; torch's defaults are off and on.
    """
    place = torch.device(device)
    on_gpu = place.type == "cuda" and torch.cuda.is_available()
    commit, dirty = _commit(Path(samfast.__file__).parent)
    return {
        "device": str(place),
        "gpu": torch.cuda.get_device_name(place) if on_gpu else None,
        "driver": _driver() if on_gpu else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "samfast": samfast.__version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    """The installed version, read without importing the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _driver() -> str | None:
    answer = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0] if answer else None


def _commit(package: Path) -> tuple[str | None, bool | None]:
    """The commit that the package is at and whether it was changed since; None, None outside its checkout.

    A copy without its `.git`, on another machine, is told its commit by SAMFAST_COMMIT.
    """
    root = _run("git", "-C", str(package), "rev-parse", "--show-toplevel")
    # An environment may lie inside some other project's checkout, whose commit says nothing here.
    if not root or not (Path(root) / "samfast").exists() or not (Path(root) / "samfast").samefile(package):
        return os.environ.get("SAMFAST_COMMIT"), None
    commit = _run("git", "-C", root, "rev-parse", "HEAD")
    if commit is None:
        return os.environ.get("SAMFAST_COMMIT"), None
    changes = _run("git", "-C", root, "status", "--porcelain")
    return commit, None if changes is None else bool(changes)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
