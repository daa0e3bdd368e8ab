"""The Python of the tutorial and of the how-to pages runs, as a reader would run it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

import samfast
from tests.scenes.scene_files import write_tiff

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(
    page
    for page in (DOCS / "tutorial.md", *(DOCS / "how-to").glob("*.md"))
    if "```python" in page.read_text(encoding="utf-8")
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the pages name: photos, their boxes, a scene, a fine-tuned checkpoint."""
    monkeypatch.chdir(tmp_path)
    coffee = Image.open(Path(skimage.__file__).parent / "data" / "coffee.png").convert("RGB")
    coffee.save("photo.jpg")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("a.jpg", (320, 240)), ("b.jpg", (200, 260))):
        coffee.resize(size).save(photos / name)
    coco = {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 8, "file_name": "a.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "bbox": [20, 30, 90, 100]},
            {"id": 2, "image_id": 7, "bbox": [50, 60, 70, 80.5]},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    pixels = np.asarray(coffee)
    write_tiff(tmp_path / "scene.tif", pixels)
    weights = next(
        (Path(samfast.__file__).parent / "checkpoints" / "weights").glob("*.safetensors")
    )
    (tmp_path / "mine.safetensors").symlink_to(weights)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(files, page, capsys):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {"np": np}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
