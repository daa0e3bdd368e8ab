"""The pictures of the page that the README shows, made as its reader would make them.

SAMFAST_UPDATE_PICTURES=1 writes them to docs/images; otherwise they are made and looked at by
simple measures only.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.serve.page.label_server import CAT, CUP
from tests.serve.page.photo_page import PhotoPage

IMAGES = Path(__file__).resolve().parents[3] / "docs" / "images"
MAX_BYTES = 200_000


def add_class(page: PhotoPage, name: str) -> None:
    page.press("c")
    page.page.keyboard.type(name)
    page.press("Enter")


def keep(page: PhotoPage, name: str) -> Image.Image:
    """Take a picture, and write it to the documents if that was asked for."""
    page.page.evaluate("document.fonts.ready")
    picture = Image.open(io.BytesIO(page.page.screenshot(animations="disabled"))).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82, optimize=True, progressive=True)
    assert len(buffer.getvalue()) < MAX_BYTES
    if os.environ.get("SAMFAST_UPDATE_PICTURES"):
        (IMAGES / name).write_bytes(buffer.getvalue())
    assert (IMAGES / name).is_file()
    return picture


def outlined(picture: Image.Image, colour: str) -> int:
    """How many pixels have nearly that colour."""
    wanted = [int(colour[index : index + 2], 16) for index in (1, 3, 5)]
    return int((np.abs(np.asarray(picture).astype(int) - wanted).max(-1) < 24).sum())


@pytest.fixture
def cup(tab, label_server, clean_folder):
    return tab(viewport={"width": 1280, "height": 800}).open(label_server.address, CUP)


def test_the_page_on_a_desk(cup):
    add_class(cup, "coffee")
    cup.drag(204, 113, 368, 208)
    cup.press("Enter")
    add_class(cup, "spoon")
    cup.click(360, 300)
    cup.press("Enter")
    add_class(cup, "cup")
    cup.drag(172, 14, 412, 292)
    cup.press("Enter")
    cup.saved()
    # The preview of a click on the saucer.
    cup.page.mouse.move(*cup.window(470, 250))
    cup.wait("() => samfast.clicks.hover")
    picture = keep(cup, "label-desktop.jpg")
    assert picture.size == (1280, 800)
    for index in range(3):
        colour = cup.page.evaluate("index => samfast.classes.all[index].colour", index)
        assert outlined(picture, colour) > 200


def test_the_page_on_a_phone(tab, label_server, clean_folder):
    page = tab(
        viewport={"width": 390, "height": 780}, device_scale_factor=1.5, has_touch=True,
        is_mobile=True,
    )  # fmt: skip
    page.open(label_server.address, CAT)
    page.page.tap('[data-tool="box"]')
    page.drag(130, 85, 205, 145)
    page.page.tap("#done")
    page.drag(295, 105, 350, 165)
    page.page.tap("#done")
    page.saved()
    picture = keep(page, "label-phone.jpg")
    assert picture.size == (585, 1170)
    assert outlined(picture, page.page.evaluate("samfast.classes.all[0].colour")) > 100
