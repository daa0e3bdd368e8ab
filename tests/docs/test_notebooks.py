"""The notebooks of the documents: they run, and their pictures are kept with them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
ABSOLUTE_PATH = r"(?<![\w.:/+])/\w[\w.-]*/[\w.-]+"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def kinds(notebook):
    """For each cell of code, the kinds of its outputs; progress and messages are left out."""
    return [
        sorted({kind for output in cell.outputs for kind in output.get("data", {})})
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_kept_with_it(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # `!samfast` must be this interpreter's.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    kept = nbformat.read(path, as_version=4)
    run = nbformat.read(path, as_version=4)
    client = NotebookClient(run, timeout=280, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert kinds(run) == kinds(kept)


def test_there_are_three_with_pictures_and_without_paths_of_a_machine():
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        assert any("image/jpeg" in each for each in kinds(notebook))
        for cell in notebook.cells:
            outputs = cell.get("outputs", [])
            texts = [output.get("data", {}).get("text/plain", "") for output in outputs]
            texts += [output.get("text", "") for output in outputs]
            for text in (cell.source, *texts):
                assert re.findall(ABSOLUTE_PATH, text) == []


def test_a_path_of_a_machine_is_noticed():
    assert re.findall(ABSOLUTE_PATH, "weights   /a/b-c/d.pth") != []
    assert re.findall(ABSOLUTE_PATH, "image/jpeg ragged/out/cat.json 1/2 https://a.b/c/d") == []
