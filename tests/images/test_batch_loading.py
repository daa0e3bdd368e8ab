"""Images that SamFast loads itself: changed pixels are warned of, once for each image."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samfast import SamFast
from samfast.errors import ImageWarning
from samfast.images import load_image
from samfast.recipes import RECIPES
from tests.model.tiny import fast, random_sam


@pytest.fixture(scope="module")
def sam() -> SamFast:
    return fast(random_sam(), RECIPES["fp32_sdpa"], batch_size=2)


@pytest.fixture
def changed(tmp_path: Path) -> dict[str, Path]:
    """Images that are changed to be used, by a word of what is said of them."""
    rgba = np.zeros((40, 50, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    Image.fromarray(np.full((40, 50), 30000, np.uint16)).save(tmp_path / "deep.png")
    frames = [Image.new("RGB", (50, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    files = {"alpha was dropped": "alpha.png", "16-bit grey": "deep.png", "2 frames": "moving.gif"}
    return {words: tmp_path / name for words, name in files.items()}


@pytest.mark.parametrize("method", ["embed", "segment"])
def test_each_changed_image_is_named_in_one_warning(
    sam: SamFast, changed: dict[str, Path], method: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        paths = [*map(str, changed.values()), np.zeros((40, 50, 3), np.uint8)]
        getattr(sam, method)(paths, **({"points_per_side": 1} if method == "segment" else {}))
    said = [str(each.message) for each in caught if each.category is ImageWarning]
    assert len(said) == len(caught) == 3
    for words, path in changed.items():
        assert [words in text for text in said if text.startswith(f"{path}: ")] == [True]


def test_a_pil_image_in_memory_has_a_number(sam: SamFast) -> None:
    images = [Image.new("RGB", (50, 40)), Image.new("RGBA", (50, 40))]
    with pytest.warns(ImageWarning, match="^image 1: alpha was dropped"):
        sam.embed(images)


def test_loaded_images_carry_notes_and_are_not_warned_of(
    sam: SamFast, changed: dict[str, Path]
) -> None:
    loaded = [load_image(path) for path in changed.values()]  # warnings are errors here
    assert all(image.notes for image in loaded)
    assert torch.isfinite(sam.embed(loaded).features).all()
