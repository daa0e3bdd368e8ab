"""Scenes below a server's root: listed, shown in tiles, and asked in pixels or coordinates."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from samfast import coco_rle
from samfast.serve.embedding_store import EmbeddingStore, feature_key
from samfast.serve.scene_folder import TILE
from samfast.serve.service import SegmentationService
from samfast.serve.store_backends import backend_of
from samfast.serve.window_store import WindowStore
from samfast.types import Prompts
from tests.scenes.scene_files import UTM, write_tiff
from tests.serve.running import api, started, tiny_engine

Work = Callable[[httpx.AsyncClient, SegmentationService], Awaitable[None]]

WIDTH, HEIGHT = 1300, 900


def blocks(seed: int = 0) -> NDArray[np.uint8]:
    draw = np.random.default_rng(seed)
    colours = draw.integers(0, 256, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8)
    return colours.repeat(20, 0).repeat(20, 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tiff(tmp_path / "scene.tif", blocks())
    (tmp_path / "below").mkdir()
    write_tiff(tmp_path / "below" / "other.tif", blocks(1))
    Image.fromarray(blocks()[:60, :80]).save(tmp_path / "small.tif")
    Image.fromarray(blocks()).save(tmp_path / "photo.png")
    return tmp_path


def with_api(work: Work, root: Path | None, **settings: Any) -> None:
    async def run() -> None:
        async with started(tiny_engine(), root=root, **settings) as service, api(service) as client:
            await work(client, service)

    asyncio.run(run())


def ask(path: str = "scene.tif", **body: Any) -> dict[str, Any]:
    return {"path": path, "objects": [{"points": [[640, 450]], "labels": [1]}], **body}


def test_scenes_are_listed_and_described(root):
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        listed = (await client.get("/v1/scenes")).json()["scenes"]
        size = {"width": WIDTH, "height": HEIGHT}
        assert listed == [{"path": "scene.tif", **size}, {"path": "below/other.tif", **size}]
        info = (await client.get("/v1/scenes/info", params={"path": "below/other.tif"})).json()
        assert (info["width"], info["height"], info["levels"]) == (WIDTH, HEIGHT, 3)
        assert "32618" in info["crs"] and info["transform"] == list(UTM)[:6]

    with_api(work, root)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_tiles_are_the_scene_s_pixels(level, root):
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        scale = 1 << level
        shown = np.zeros((-(-HEIGHT // scale), -(-WIDTH // scale), 4), dtype=np.uint8)
        for row in range(-(-HEIGHT // scale // TILE)):
            for column in range(-(-WIDTH // scale // TILE)):
                params = {"path": "scene.tif", "level": level, "column": column, "row": row}
                answer = await client.get("/v1/scenes/tile", params={**params, "format": "png"})
                assert answer.headers["content-type"] == "image/png"
                tile = np.asarray(Image.open(io.BytesIO(answer.content)))
                assert tile.shape == (TILE, TILE, 4)
                part = shown[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
                part[:] = tile[: part.shape[0], : part.shape[1]]
        assert (shown[:, :, 3] == 255).all()
        # The middle of each block has its colour at every level.
        middle = (np.arange(10, HEIGHT - 10, 20) // scale), (np.arange(10, WIDTH - 10, 20) // scale)
        expected = blocks()[10::20, 10::20][: len(middle[0]), : len(middle[1])]
        assert (shown[middle[0][:, None], middle[1][None], :3] == expected).all()
        etag = answer.headers["etag"]
        again = await client.get(
            "/v1/scenes/tile", params={**params, "format": "png"}, headers={"If-None-Match": etag}
        )
        assert again.status_code == 304

    with_api(work, root)


def test_a_click_is_answered_as_predict_large_does(root):
    sam = tiny_engine()

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        for zoom, at in ((1, [640, 450]), (1, [3, 895]), (4, [640, 450])):
            body = ask(objects=[{"points": [at], "labels": [1]}], format="rle", zoom=zoom)
            answer = (await client.post("/v1/scenes/predict", json=body)).json()
            (found,) = answer["objects"]
            best = max(found["masks"], key=lambda mask: mask["predicted_iou"])
            assert best["segmentation"]["size"] == [HEIGHT, WIDTH]
            mask = coco_rle.decode(best["segmentation"])
            assert mask.sum() == best["area"]
            if zoom > 1:
                continue
            click = Prompts(points=[[at]], labels=[[1]])
            with sam.predict_large(root / "scene.tif", click, tile=128) as objects:
                (record,) = objects
            assert (coco_rle.decode(record["segmentation"]) == mask).all()
            assert record["bbox"] == best["bbox"]

    with_api(work, root)


def test_polygons_are_the_mask_and_map_coordinates_the_same_click(root):
    from skimage.draw import polygon2mask

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        answers = []
        x, y = UTM * (640, 450)
        for body in (
            ask(format="rle"),
            ask(),
            ask(objects=[{"points": [[x, y]], "labels": [1]}], coordinates="map"),
        ):
            answer = (await client.post("/v1/scenes/predict", json=body)).json()
            answers.append(answer["objects"][0]["masks"][0])
        mask = coco_rle.decode(answers[0]["segmentation"])
        drawn = np.zeros_like(mask)
        for polygon in answers[1]["polygons"]:
            for ring in (polygon["exterior"], *polygon["holes"]):
                corners = np.array(ring)[:, ::-1] - 0.5
                drawn ^= polygon2mask(mask.shape, corners)
        assert (drawn == mask).all() and mask.any()
        assert answers[1]["polygons"] == answers[2]["polygons"]

    with_api(work, root)


def test_a_second_click_goes_on_in_the_same_window_and_costs_no_encoding(root):
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        async def encoded() -> float:
            text = (await client.get("/metrics")).text
            name = 'samfast_embedding_lookups_total{tier="encoded"}'
            lines = [line for line in text.splitlines() if line.startswith(name)]
            return float(lines[0].split()[1]) if lines else 0.0

        first = (await client.post("/v1/scenes/predict", json=ask())).json()["objects"][0]
        before = await encoded()
        assert before >= 1
        left, top, zoom = (int(part) for part in first["window"].split(","))
        near = {
            "points": [[640, 450], [660, 440]],
            "labels": [1, 0],
            "window": first["window"],
            "mask": first["masks"][0]["ref"],
        }
        second = await client.post("/v1/scenes/predict", json=ask(objects=[near]))
        assert second.json()["objects"][0]["window"] == first["window"]
        assert await encoded() == before
        # Far away the window is another one, to which the mask does not belong.
        far = {**near, "points": [[640, 450], [900, 440]]}
        third = (await client.post("/v1/scenes/predict", json=ask(objects=[far]))).json()
        assert third["objects"][0]["window"] != first["window"]
        assert zoom == 1 and left >= 0 and top >= 0

    with_api(work, root)


def test_a_scene_embedded_ahead_is_answered_from_the_store(root, tmp_path):
    sam, url = tiny_engine(), str(tmp_path / "store")
    store = EmbeddingStore(backend_of(url), feature_key(sam), 1 << 30)
    done = sam.embed_large(root / "scene.tif", WindowStore(store), tile=128)
    assert done.embedded == len(store) > 100 and not done.failures
    again = sam.embed_large(root / "scene.tif", WindowStore(store), tile=128)
    assert (again.embedded, again.known) == (0, done.embedded)

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        # Further in its window than any mask, so that none is cut there.
        answer = await client.post("/v1/scenes/predict", json=ask())
        assert answer.status_code == 200
        text = (await client.get("/metrics")).text
        assert 'samfast_embedding_lookups_total{tier="store"}' in text

    with_api(work, root, store=url)


@pytest.mark.parametrize(
    ("method", "path", "given", "status"),
    [
        ("GET", "/v1/scenes/info", {"path": "missing.tif"}, 404),
        ("GET", "/v1/scenes/info", {"path": "../scene.tif"}, 404),
        ("GET", "/v1/scenes/info", {"path": "/etc/passwd"}, 400),
        ("GET", "/v1/scenes/info", {"path": "broken.tif"}, 422),
        ("GET", "/v1/scenes/info", {"path": "points.vrt"}, 404),
        ("GET", "/v1/scenes/tile", {"path": "scene.tif", "level": 9, "column": 0, "row": 0}, 404),
        ("GET", "/v1/scenes/tile", {"path": "scene.tif", "level": 0, "column": 3, "row": 0}, 404),
        ("GET", "/v1/scenes/tile", {"path": "scene.tif", "level": 0, "column": -1, "row": 0}, 422),
        ("POST", "/v1/scenes/predict", ask(objects=[{"points": [[5, 5]]}]), 422),
        ("POST", "/v1/scenes/predict", ask(objects=[{"points": [[9999, 5]], "labels": [1]}]), 422),
        ("POST", "/v1/scenes/predict", ask(objects=[{"mask": "0f.0"}]), 422),
        ("POST", "/v1/scenes/predict", ask(zoom=0), 422),
        (
            "POST",
            "/v1/scenes/predict",
            ask(objects=[{"box": [1, 1, 50, 50], "window": "1,2"}]),
            422,
        ),
        ("POST", "/v1/scenes/predict", ask("small.tif", coordinates="map"), 422),
    ],
)
def test_mistakes_have_a_status_and_do_not_tell_where_files_lie(method, path, given, status, root):
    (root / "broken.tif").write_bytes(b"II*\0 and nothing else")
    (root / "points.vrt").write_text("<VRTDataset/>")

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        how = {"params": given} if method == "GET" else {"json": given}
        answer = await client.request(method, path, **how)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["message"] and "\n" not in error["message"]
        assert str(root) not in answer.text

    with_api(work, root)


def test_without_a_root_there_are_no_scenes():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        assert (await client.get("/v1/scenes")).json() == {"scenes": []}
        answer = await client.get("/v1/scenes/info", params={"path": "scene.tif"})
        assert answer.status_code == 403

    with_api(work, None)
