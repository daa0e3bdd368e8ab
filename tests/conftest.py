"""What every test shares: few threads, the same examples each time, and the folder of photos."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    # Without a GPU, kernels run in Triton's interpreter. The variable must be set before triton is
    # imported: each kernel is bound to the compiler or to the interpreter when it is defined.
    os.environ["TRITON_INTERPRET"] = "1"

# Every run draws the same examples; `--hypothesis-profile=default` draws new ones.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Small tensors are faster without a pool of threads, and workers share the cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
        torch.set_num_threads(1)
    else:
        torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are given a long time start first, so that no worker is left with one at last."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test draws the same numbers whichever tests its process ran before it."""
    torch.manual_seed(zlib.crc32(item.nodeid.partition("@")[0].encode()))


@pytest.fixture(scope="session")
def photo_data() -> Path:
    """The folder in SAMFAST_DATA, with train/ and val/: photos and COCO annotations.

    Skips without it on a developer's machine and fails under CI, where it must be there.
    """
    folder = os.environ.get("SAMFAST_DATA")
    if folder and (Path(folder) / "val" / "annotations.json").is_file():
        return Path(folder)
    reason = f"SAMFAST_DATA={folder!r} is no folder with val/annotations.json"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
