"""The page of large images in a browser: tiles at several levels, clicks and boxes in them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page

from tests.scenes.scene_files import UTM, write_tiff
from tests.serve.page.label_server import Server
from tests.serve.page.photo_page import OpenTab

SIDE = 2600
CUP = (1300 + 300, 700 + 180)
"""A pixel of the cup in the scene of `scene_pixels`."""


def scene_pixels() -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3): blocks of one colour, and in the middle a photo of a cup."""
    draw = np.random.default_rng(0)
    colours = draw.integers(40, 216, (SIDE // 100, SIDE // 100, 3), dtype=np.uint8)
    scene = colours.repeat(100, 0).repeat(100, 1)
    cup = skimage.data.coffee()
    scene[700 : 700 + cup.shape[0], 1300 : 1300 + cup.shape[1]] = cup
    return scene


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_tiff(folder / "field.tif", scene_pixels())
    (folder / "north").mkdir()
    write_tiff(folder / "north" / "other.tif", scene_pixels()[:1200, :1500])
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    started = Server("serve", "--root", str(root)).start()
    yield started
    started.stop()


class ScenePage:
    """One tab with a large image."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def open(self, server: Server, path: str = "field.tif") -> ScenePage:
        self.page.goto(f"{server.address}/scene.html#{path}")
        self.page.wait_for_function("path => globalThis.scenePage?.info?.path === path", arg=path)
        self.settled()
        return self

    def settled(self) -> None:
        """Wait until all tiles in sight are drawn."""
        self.page.wait_for_function(
            """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() =>
                done(!scenePage.view.pending && !scenePage.view.tiles.waiting.size
                     && !scenePage.view.tiles.wanted.length))))"""
        )

    def show(self, x: float, y: float, scale: float) -> None:
        """Zoom so that a pixel of the image is in the middle of the canvas."""
        self.page.evaluate(
            """([x, y, scale]) => {
                const view = scenePage.view;
                view.zoom(scale / view.scale);
                const { clientWidth, clientHeight } = view.canvas;
                view.pan(clientWidth / 2 - x * scale - view.left,
                         clientHeight / 2 - y * scale - view.top);
            }""",
            [x, y, scale],
        )
        self.settled()

    def at(self, x: float, y: float) -> tuple[float, float]:
        place = self.page.evaluate("spot => scenePage.view.toWindow(spot)", [x + 0.5, y + 0.5])
        return place[0], place[1]

    def click(self, x: float, y: float) -> None:
        self.page.mouse.click(*self.at(x, y))
        self.answered()

    def answered(self) -> None:
        self.page.wait_for_function("() => scenePage.work.waiting === 0")

    def objects(self) -> list[dict[str, Any]]:
        objects: list[dict[str, Any]] = self.page.evaluate(
            "() => scenePage.work.objects.map(({ path, ...rest }) => rest)"
        )
        return objects

    def colour_at(self, x: float, y: float) -> NDArray[np.int64]:
        """RGB on the screen where a pixel of the image lies."""
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        left, top = self.at(x, y)
        return np.array(picture.getpixel((round(left), round(top))), dtype=np.int64)


@pytest.fixture
def scene(tab: OpenTab, server: Server) -> ScenePage:
    opened = tab().page
    return ScenePage(opened).open(server)


def asked(server: Server, **object_: Any) -> dict[str, Any]:
    """The API's answer to one object."""
    zoom = object_.pop("zoom", 1)
    multimask = object_.pop("multimask", True)
    body = {"path": "field.tif", "objects": [object_], "zoom": zoom, "multimask": multimask}
    answer = httpx.post(f"{server.address}/v1/scenes/predict", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    masks = answer.json()["objects"][0]["masks"]
    best: dict[str, Any] = max(masks, key=lambda mask: mask["predicted_iou"])
    return best


@pytest.mark.parametrize("scale", [0.12, 0.3, 1.0, 3.0])
def test_pixels_lie_where_they_belong_at_every_level(scale, scene):
    pixels = scene_pixels().astype(np.int64)
    for x, y in ((1150, 1450), (250, 2350), (2450, 150)):
        scene.show(x, y, scale)
        seen = scene.colour_at(x, y)
        assert np.abs(seen - pixels[y, x]).max() < 12, (scale, x, y, seen, pixels[y, x])
    level = scene.page.evaluate("() => scenePage.view.tiles.levelFor(scenePage.view.scale)")
    assert level == max(0, int(np.floor(np.log2(1 / scale))))


def test_a_click_shows_the_mask_that_the_api_gives(scene, server):
    scene.show(*CUP, 1.0)
    scene.click(*CUP)
    (found,) = scene.objects()
    best = asked(server, points=[[CUP[0] + 0.5, CUP[1] + 0.5]], labels=[1])
    assert found["polygons"] == best["polygons"] and found["area"] == best["area"] > 3000
    assert "1" in scene.page.inner_text("#object-count")
    x, y, width, height = found["bbox"]
    assert x >= 1300 and x + width <= 1900 and y >= 700 and y + height <= 1100
    # Its colour lies on it.
    scene.page.mouse.move(5, 400)
    inside = scene.colour_at(CUP[0] + 12, CUP[1])
    before = scene_pixels()[CUP[1], CUP[0] + 12].astype(np.int64)
    assert np.abs(inside - before).max() > 15


def test_zoomed_out_the_model_sees_what_the_screen_shows(scene, server):
    scene.show(*CUP, 0.25)
    scene.click(*CUP)
    (found,) = scene.objects()
    assert found["zoom"] == 4 and found["window"].endswith(",4")
    x, y = (value + 0.5 for value in found["points"][0])
    best = asked(server, points=found["points"], labels=[1], zoom=4)
    assert best["polygons"] == found["polygons"] and x and y


def test_further_clicks_go_on_with_the_object_until_it_is_done(scene, server):
    scene.show(*CUP, 1.0)
    scene.click(*CUP)
    (first,) = scene.objects()
    scene.page.keyboard.down("Shift")
    scene.click(CUP[0] + 90, CUP[1] + 60)
    scene.page.keyboard.up("Shift")
    (second,) = scene.objects()
    assert second["labels"] == [1, 0] and second["window"] == first["window"]
    assert second["id"] == first["id"]
    scene.page.keyboard.press("Enter")
    scene.click(1340, 1060)
    assert [each["id"] for each in scene.objects()] == [1, 2]
    scene.page.keyboard.press("Control+z")
    scene.page.keyboard.press("Control+z")
    scene.page.keyboard.press("Control+z")
    assert scene.objects() == [first]
    scene.page.keyboard.press("Control+Shift+z")
    assert scene.objects() == [second]


def test_a_box_is_an_object(scene, server):
    scene.show(1600, 900, 1.0)
    scene.page.mouse.move(*scene.at(1399.5, 749.5))
    scene.page.mouse.down()
    scene.page.mouse.move(*scene.at(1500, 900))
    scene.page.mouse.move(*scene.at(1799.5, 1049.5))
    scene.page.mouse.up()
    scene.page.wait_for_function("() => scenePage.work.objects.length === 1")
    scene.answered()
    (found,) = scene.objects()
    assert found["box"] == [1400, 750, 1800, 1050]
    best = asked(server, box=[1400, 750, 1800, 1050], multimask=False)
    assert found["polygons"] == best["polygons"]


def test_the_download_has_the_coordinates_of_the_image(scene, tmp_path):
    scene.show(*CUP, 1.0)
    scene.click(*CUP)
    (found,) = scene.objects()
    with scene.page.expect_download() as downloading:
        scene.page.click("#geojson")
    assert downloading.value.suggested_filename == "field.geojson"
    downloading.value.save_as(tmp_path / "field.geojson")
    collection = json.loads((tmp_path / "field.geojson").read_text())
    assert "32618" in collection["crs"]["properties"]["name"]
    (feature,) = collection["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    ring = np.array(feature["geometry"]["coordinates"][0][0])
    corners = np.array(found["polygons"][0]["exterior"], dtype=float)
    expected = np.array(UTM * (corners[:, 0], corners[:, 1])).T
    assert np.allclose(ring[:-1], expected) and (ring[0] == ring[-1]).all()


def test_wheel_and_keys_zoom_and_move(scene):
    scene.page.mouse.move(*scene.at(*CUP))
    before = scene.at(*CUP)
    scale = scene.page.evaluate("() => scenePage.view.scale")
    scene.page.mouse.wheel(0, -300)
    scene.page.wait_for_function("scale => scenePage.view.scale > 1.3 * scale", arg=scale)
    after = scene.at(*CUP)
    assert np.abs(np.subtract(after, before)).max() < 1
    scene.page.keyboard.press("ArrowRight")
    assert scene.at(*CUP)[0] == pytest.approx(after[0] - 80)
    scene.page.keyboard.press("0")
    assert scene.page.evaluate("() => scenePage.view.scale") == pytest.approx(scale)


def test_images_are_chosen_from_a_list_and_the_photo_page_links_here(tab, server):
    page = tab().page
    page.goto(server.address)
    page.click("#scene-link")
    scene = ScenePage(page)
    page.wait_for_function("() => globalThis.scenePage?.info?.path === 'field.tif'")
    page.select_option("#scenes", "north/other.tif")
    page.wait_for_function("() => globalThis.scenePage?.info?.path === 'north/other.tif'")
    scene.settled()
    assert page.evaluate("() => scenePage.view.size") == {"width": 1500, "height": 1200}


def test_what_goes_wrong_is_said(tab, server, root):
    (root / "broken.tif").write_bytes(b"II*\0 nothing")
    page = tab().page
    page.goto(f"{server.address}/scene.html#broken.tif")
    page.wait_for_selector("#failure:not([hidden])")
    assert "broken.tif" in page.inner_text("#failure-text")
    scene = ScenePage(page)
    page.select_option("#scenes", "field.tif")
    page.wait_for_function("() => globalThis.scenePage?.info?.path === 'field.tif'")
    scene.settled()
    page.route("**/v1/scenes/predict", lambda route: route.abort())
    scene.show(*CUP, 1.0)
    scene.click(*CUP)
    page.wait_for_selector(".toast:has-text('does not answer')")
    page.unroute("**/v1/scenes/predict")
    scene.click(*CUP)
    assert len(scene.objects()) == 1


def test_a_token_is_asked_for_and_then_used(browser: Browser, root, tmp_path, tab):
    token = tmp_path / "token"
    token.write_text("a-token-of-many-characters")
    server = Server("serve", "--root", str(root), "--token-file", str(token)).start()
    try:
        page = tab().page
        page.goto(f"{server.address}/scene.html#field.tif")
        page.fill("#token", "a-token-of-many-characters")
        page.click("#token-dialog button")
        page.wait_for_function("() => globalThis.scenePage?.info?.path === 'field.tif'")
        ScenePage(page).settled()
    finally:
        server.stop()
