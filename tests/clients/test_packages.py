"""Published packages that use segment_anything, on the original and through `samfast exec`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.clients.conftest import needs, run_program
from tests.pairs import relative_error

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

PROGRAMS = Path(__file__).parent / "programs"


def answers(folders: tuple[Path, Path]) -> tuple[dict, dict]:
    """The original's arrays and samfast's, of the same names."""
    theirs, ours = (dict(np.load(folder / "answers.npz")) for folder in folders)
    assert ours.keys() == theirs.keys()
    return theirs, ours


def differing(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of pixels that differ."""
    assert ours.shape == theirs.shape
    return float((ours != theirs).mean())


@pytest.fixture(scope="module")
def cellpose_original(client_environment, tmp_path_factory) -> Path:
    """A folder with weights.pth, random, and the original's answer to them."""
    words = (PROGRAMS / "cellpose_network.py", "weights.pth", "answers.npz")
    folder = tmp_path_factory.mktemp("cellpose")
    return run_program("original", words, folder, client_environment)


@needs("cellpose")
def test_cellpose_loads_its_weights_strictly(cellpose_original, client_environment, tmp_path):
    words = (PROGRAMS / "cellpose_network.py", cellpose_original / "weights.pth", "answers.npz")
    run_program("samfast", words, tmp_path, client_environment)
    theirs, ours = answers((cellpose_original, tmp_path))
    assert relative_error(ours["flows"], theirs["flows"]) < 3e-6


@needs("cellpose")
def test_the_program_cellpose(cellpose_original, client_environment, photo, tmp_path):
    """The console program finds the same cells; it runs the network in bfloat16."""
    found = []
    for name, program in (("original", ("-m", "cellpose")), ("samfast", ("cellpose",))):
        folder = tmp_path / name
        folder.mkdir()
        with Image.open(photo) as picture:
            picture.crop((150, 60, 406, 316)).save(folder / "photo.png")
        words = [*program, "--image_path", "photo.png", "--flow_threshold", 0]
        words += ["--pretrained_model", cellpose_original / "weights.pth"]
        run_program(name, words, folder, client_environment)
        found.append(np.load(folder / "photo_seg.npy", allow_pickle=True).item()["masks"])
    theirs, ours = found
    assert theirs.max() > 20
    assert abs(int(ours.max()) - int(theirs.max())) <= 0.05 * theirs.max()
    assert differing(ours > 0, theirs > 0) < 0.02


@needs("samgeo")
def test_samgeo(run_both, vit_xs, photo):
    folders = run_both(PROGRAMS / "samgeo_masks.py", vit_xs, photo, "answers.npz")
    theirs, ours = answers(folders)
    assert len(theirs["masks"]) > 5
    for name in ("labels", "masks", "click", "box"):
        assert differing(ours[name], theirs[name]) < 1e-4, name
    assert relative_error(ours["click_scores"], theirs["click_scores"]) < 1e-4


@needs("micro_sam")
def test_micro_sam(run_both, vit_b, photo):
    folders = run_both(PROGRAMS / "micro_sam_masks.py", vit_b, photo, "answers.npz")
    theirs, ours = answers(folders)
    assert int(ours["count"]) == int(theirs["count"])
    for name in ("features", "logits", "volume"):
        assert relative_error(ours[name], theirs[name]) < 1e-4, name
    for name in ("masks", "boxes"):
        assert differing(ours[name], theirs[name]) < 1e-3, name
