"""What every test shares: one thread, and the folder of photos for measuring, where there is
one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's kernels then run in its interpreter. To be said before anything imports triton: its
    # own functions, and every kernel, are bound to one or the other when they are defined.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Small tensors are faster without a pool of threads, and equal from run to run."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def photo_data() -> Path:
    """The folder that SAMFAST_DATA names, with train/ and val/: photos and COCO annotations.

    Skips without it on a developer's machine and fails under CI, where it must be there.
    """
    folder = os.environ.get("SAMFAST_DATA")
    if folder and (Path(folder) / "val" / "annotations.json").is_file():
        return Path(folder)
    reason = f"SAMFAST_DATA={folder!r} is no folder with val/annotations.json"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
