"""Every kernel compiles for Ampere and for Hopper, on machines without a GPU too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


def test_every_kernel_compiles(tmp_path: Path) -> None:
    processes = {}
    for capability in ("80", "90"):  # side by side
        environment = {
            **os.environ,
            "TRITON_CACHE_DIR": str(tmp_path / capability),
            "TRITON_INTERPRET": "0",
        }
        processes[capability] = subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.compiling", capability],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    done = {capability: process.communicate() for capability, process in processes.items()}
    for capability, (out, error) in done.items():
        assert processes[capability].returncode == 0, (
            f"compute capability {capability}: {error[-3000:]}"
        )
        assert int(out) >= 60
