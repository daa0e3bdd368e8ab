"""Clients' programs on the original and on samfast, in new processes, with the same inputs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import samfast
from samfast.checkpoints import resolve
from samfast.checkpoints.state_dict import read_state
from tests.pairs import randomise

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "clients"

SAMFAST_EXEC = ("-m", "samfast", "exec", "--")

RunBoth = Callable[..., tuple[Path, Path]]


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where a client's package is not installed; under CI the test fails there."""
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None and not os.environ.get("CI"),
        reason=f"{package} is not installed; make test-clients installs it",
    )


@pytest.fixture(scope="session")
def client_environment(tmp_path_factory) -> dict[str, str]:
    """The environment of clients' programs: this checkout's samfast, and a home of their own."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        "HOME": str(home),
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        "SAMFAST_CACHE": str(home / "samfast"),
    }
    command = [sys.executable, "-c", "import torchvision"]
    if subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode != 0:
        path = (str(HERE / "torchvision_without_ops"), str(ROOT))
        environment["PYTHONPATH"] = os.pathsep.join(path)
    return environment


def run_program(name: str, words: Sequence[object], folder: Path, env: dict[str, str]) -> Path:
    """Run a program in a folder on "original" or "samfast"; returns the folder."""
    starts = {"original": [HERE / "original_program.py"], "samfast": SAMFAST_EXEC}
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *map(str, [*starts[name], *words])],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"on {name}:\n{done.stdout}\n{done.stderr}"
    return folder


@pytest.fixture
def run_both(client_environment, tmp_path) -> RunBoth:
    """Runs a program on the original and on samfast; returns the folders in which they ran."""

    def run(*words: object) -> tuple[Path, Path]:
        theirs, ours = (
            run_program(name, words, tmp_path / name, client_environment)
            for name in ("original", "samfast")
        )
        return theirs, ours

    return run


@pytest.fixture(scope="session")
def vit_xs(tmp_path_factory) -> Path:
    """The packaged model's weights as a .pth file, which the original's `torch.load` reads."""
    path = tmp_path_factory.mktemp("weights") / "vit_xs.pth"
    state = read_state(resolve("vit_xs", None))
    torch.save({name: tensor.float() for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope="session")
def vit_b(tmp_path_factory) -> Path:
    """Random weights of a ViT-B as a .pth file."""
    path = tmp_path_factory.mktemp("weights") / "vit_b.pth"
    torch.manual_seed(0)
    sam = samfast.build_sam_vit_b()
    randomise(sam, scale=0.02)
    torch.save(sam.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    """A cup of coffee, by Rachel Michetti (CC0), 600 x 400 pixels."""
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("photo") / "coffee.png"
    Image.fromarray(np.asarray(data.coffee())).save(path)
    return path
