"""Meta's own scripts and notebooks, at a pinned commit, on the original and on samfast."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from samfast.outputs import decode
from tests.clients.checkouts import META, META_COMMIT, checkout
from tests.pairs import relative_error

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture
def meta(request):
    """Fetches files of Meta's repository."""
    cache = request.config.cache.mkdir("clients")
    return lambda *paths: checkout(META, META_COMMIT, paths, cache)


def iou(mask: np.ndarray, other: np.ndarray) -> float:
    return float((mask & other).sum() / max(1, (mask | other).sum()))


def test_amg_finds_the_same_masks(run_both, meta, vit_xs, photo):
    pytest.importorskip("cv2")
    script = meta("scripts") / "scripts" / "amg.py"
    words = [script, "--input", photo, "--output", "out", "--convert-to-rle", "--device", "cpu"]
    words += ["--model-type", "vit_xs", "--checkpoint", vit_xs, "--points-per-side", 7]
    words += ["--pred-iou-thresh", 0.5, "--stability-score-thresh", 0.75]
    folders = run_both(*words)
    theirs, ours = (json.loads((folder / "out" / "coffee.json").read_text()) for folder in folders)
    assert len(theirs) > 5
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        assert iou(decode(our["segmentation"]), decode(their["segmentation"])) > 0.999
        assert our["point_coords"] == their["point_coords"]
        assert our["predicted_iou"] == pytest.approx(their["predicted_iou"], rel=1e-4)


def test_export_onnx_model_writes_the_same_function(run_both, meta, vit_xs):
    runtime = pytest.importorskip("onnxruntime")
    script = meta("scripts") / "scripts" / "export_onnx_model.py"
    words = [PROGRAMS / "export_by_tracing.py", script]
    words += ["--checkpoint", vit_xs, "--model-type", "vit_xs", "--output", "decoder.onnx"]
    rng = np.random.default_rng(0)
    inputs = {
        "image_embeddings": rng.normal(size=(1, 256, 64, 64)),
        "point_coords": rng.uniform(0, 1024, (1, 5, 2)),
        "point_labels": np.array([[1, 0, 2, 3, -1]]),
        "mask_input": rng.normal(size=(1, 1, 256, 256)),
        "has_mask_input": np.ones(1),
        "orig_im_size": np.array([1500, 2250]),  # of the script's example
    }
    feed = {name: value.astype(np.float32) for name, value in inputs.items()}
    answers = []
    for folder in run_both(*words):
        session = runtime.InferenceSession(str(folder / "decoder.onnx"))
        answers.append(session.run(["masks", "iou_predictions", "low_res_masks"], feed))
    for their, our in zip(*answers, strict=True):
        assert relative_error(our, their) < 1e-4


@pytest.mark.parametrize("notebook", ["predictor_example", "onnx_model_example"])
def test_notebook(run_both, meta, vit_xs, tmp_path, notebook):
    pytest.importorskip("cv2")
    pytest.importorskip("IPython")
    notebook = f"notebooks/{notebook}.ipynb"
    files = meta(notebook, "notebooks/images")
    program = PROGRAMS / "run_notebook.py"
    # The notebook reads images/ in the current folder.
    for name in ("original", "samfast"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "images").symlink_to(files / "notebooks" / "images")
    words = (program, files / notebook, vit_xs, "answers.npz")
    folders = run_both(*words)
    theirs, ours = (np.load(folder / "answers.npz") for folder in folders)
    assert ours.files == theirs.files
    assert relative_error(ours["embedding"], theirs["embedding"]) < 1e-4
    assert iou(ours["masks"].astype(bool), theirs["masks"].astype(bool)) > 0.99
