"""The stamp on every number: what it was measured on, with what, and when."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import samfast
from samfast.device.machine import cpu_kind, cpu_name, driver_version, installed_version

SETTINGS = (
    *("TORCHINDUCTOR_", "TRITON_", "CUBLAS_"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE"),
)
"""Prefixes of the environment variables that can change a figure."""

SAME_RUN = (
    *("device", "gpu", "driver", "cuda", "torch", "triton", "samfast", "commit", "dirty"),
    *("cpu", "threads", "tf32", "tf32_convolutions", "settings"),
)
"""Keys of two stamps that must agree for their figures to be of one run."""


def stamp(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What figures are measured on, with what and when, for JSON; GPU keys are None on a CPU.

    tf32 is of matrix products, tf32_convolutions of cuDNN's; torch's defaults are off and on.
    """
    place = torch.device(device)
    on_gpu = place.type == "cuda" and torch.cuda.is_available()
    capability = torch.cuda.get_device_capability(place) if on_gpu else None
    commit, dirty = _commit(Path(samfast.__file__).parent)
    return {
        "device": str(place),
        "gpu": torch.cuda.get_device_name(place) if on_gpu else None,
        "capability": None if capability is None else ".".join(map(str, capability)),
        "driver": driver_version() if on_gpu else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": installed_version("triton"),
        "samfast": samfast.__version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_kind": cpu_kind(),
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "settings": settings(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def settings() -> dict[str, str]:
    """The variables of SETTINGS that are set, without those that name places, and without paths."""
    return {
        name: "a path" if os.sep in value else value
        for name, value in sorted(os.environ.items())
        if name.startswith(SETTINGS) and not name.endswith(("_DIR", "_HOME", "_PATH"))
    }


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _commit(package: Path) -> tuple[str | None, bool | None]:
    """The package's commit and whether files were changed since; None, None outside a checkout.

    SAMFAST_COMMIT names the commit of a copy on a machine without the checkout.
    """
    if os.environ.get("SAMFAST_COMMIT"):
        return os.environ["SAMFAST_COMMIT"], None
    root = _run("git", "-C", str(package), "rev-parse", "--show-toplevel")
    # An environment may lie inside another project's checkout, whose commit says nothing here.
    checkout = Path(root or "") / "samfast"
    if not root or not checkout.exists() or not checkout.samefile(package):
        return None, None
    commit = _run("git", "-C", root, "rev-parse", "HEAD")
    changes = _run("git", "-C", root, "status", "--porcelain")
    return commit, None if commit is None or changes is None else bool(changes)
