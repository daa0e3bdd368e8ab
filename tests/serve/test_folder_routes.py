"""The photos of a folder over HTTP, and the rules of saving their annotations."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from samfast import coco_rle
from samfast.serve.annotations_file import AnnotationsFile
from samfast.serve.app import create_app
from samfast.serve.photo_folder import PhotoFolder
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings
from tests.serve.running import picture, pixels_of, tiny_engine

Work = Callable[[httpx.AsyncClient], Awaitable[None]]


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "a.png").write_bytes(picture(1))
    (folder / "sub" / "b ü#?.png").write_bytes(picture(2))
    (folder / ".hidden" / "c.png").write_bytes(picture(3))
    (folder / ".d.png").write_bytes(picture(4))
    (folder / "notes.txt").write_text("secret")
    (tmp_path / "outside.png").write_bytes(picture(5))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    return folder


def with_page(photos: Path, work: Work, *, labelled: bool = True, token: str | None = None) -> None:
    """Run a test's work against the application; nothing here needs the model."""

    async def run() -> None:
        settings = Settings(root=photos, token=token)
        file = AnnotationsFile(photos / "annotations.json") if labelled else None
        folder = PhotoFolder(photos, annotations=file)
        service = SegmentationService(tiny_engine(), settings)
        app = create_app(service, settings, folder=folder)
        async with AsyncExitStack() as stack:
            transport = httpx.ASGITransport(app)
            client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
            await work(await stack.enter_async_context(client))

    asyncio.run(asyncio.wait_for(run(), 120))


def test_the_page_is_told_the_model_and_the_photos(photos):
    async def work(client: httpx.AsyncClient) -> None:
        told = (await client.get("/v1/page")).json()
        assert told["device"] == "cpu"
        folder = told["folder"]
        assert (folder["name"], folder["labelling"]) == ("photos", True)
        names = [each["name"] for each in folder["photos"]]
        assert names == ["a.png", "link.png", "sub/b ü#?.png"]

    with_page(photos, work)


def test_photos_and_thumbnails(photos):
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/folder/photos/a.png")
        assert answer.content == picture(1)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        name = "sub/b%20%C3%BC%23%3F.png"
        assert (await client.get(f"/v1/folder/photos/{name}")).content == picture(2)
        small = await client.get(f"/v1/folder/thumbnails/{name}")
        assert Image.open(io.BytesIO(small.content)).size == (176, 128)

    with_page(photos, work)


def test_formats_that_browsers_do_not_show_become_jpeg(photos):
    pixels = pixels_of(picture(6))
    Image.fromarray(pixels).save(photos / "e.tif")
    (photos / "e.tif").rename(photos / "e.jpg")  # what counts are the bytes
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 9, np.uint8)])
    Image.fromarray(alpha).save(photos / "f.png")

    async def work(client: httpx.AsyncClient) -> None:
        for name in ("e.jpg", "f.png"):
            answer = await client.get(f"/v1/folder/photos/{name}")
            assert answer.headers["content-type"] == "image/jpeg"
            shown = pixels_of(answer.content).astype(int)
            assert np.abs(shown - pixels).mean() < 12  # alpha is dropped, not blended

    with_page(photos, work)


def test_a_photo_that_is_turned_by_exif_has_the_size_that_is_shown(photos):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(io.BytesIO(picture(7))).save(photos / "g.jpg", exif=turned)
    assert PhotoFolder(photos).size("g.jpg") == (90, 60)
    assert PhotoFolder(photos).size("a.png") == (60, 90)


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "..%2Foutside.png",
        "../outside.png",
        "link.png",
        ".d.png",
        ".hidden/c.png",
        "sub/..%2f..%2foutside.png",
        "%2Fetc%2Fpasswd.png",
        "nothing.png",
        "a.png%00",
    ],
)
def test_nothing_else_is_handed_out(photos, name):
    async def work(client: httpx.AsyncClient) -> None:
        for kind in ("photos", "thumbnails", "annotations"):
            answer = await client.get(f"/v1/folder/{kind}/{name}")
            assert answer.status_code in (400, 404), (kind, answer.status_code)
            assert "secret" not in answer.text

    with_page(photos, work)


def test_saving_needs_the_revision_and_says_what_is_there_now(photos):
    mask = np.zeros((60, 90), bool)
    mask[5:20, 5:30] = True
    body = {
        "annotations": [
            {"key": "k", "category": {"name": "x"}, "segmentation": coco_rle.encode(mask)}
        ]
    }
    path = "/v1/folder/annotations/a.png"

    async def work(client: httpx.AsyncClient) -> None:
        first = await client.get(path)
        assert first.json()["annotations"] == []
        assert first.headers["etag"] == f'"{first.json()["revision"]}"'
        missing = await client.put(path, json=body)
        assert (missing.status_code, missing.json()["error"]["code"]) == (428, "no_revision")
        match = {"If-Match": first.headers["etag"]}
        saved = await client.put(path, json=body, headers=match)
        assert saved.status_code == 200
        stale = await client.put(path, json=body, headers=match)
        assert stale.status_code == 412
        assert stale.json()["error"]["code"] == "changed_meanwhile"
        assert stale.json()["current"] == saved.json()
        for wrong in ({"annotations": [{"key": "k"}]}, {"annotations": 3}, {"other": 1}):
            answer = await client.put(path, json=wrong, headers=match)
            assert answer.status_code == 422

    with_page(photos, work)


def test_a_folder_that_is_not_labelled_has_no_annotations(photos):
    async def work(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/page")).json()["folder"]["labelling"] is False
        assert (await client.get("/v1/folder/annotations/a.png")).status_code == 404
        assert (await client.get("/v1/folder/annotations.json")).status_code == 404
        assert (await client.get("/v1/folder/photos/a.png")).status_code == 200

    with_page(photos, work, labelled=False)


def test_photos_need_the_token_and_the_page_does_not(photos):
    token = "a-token-of-some-length"

    async def work(client: httpx.AsyncClient) -> None:
        for path in ("/", "/app.js", "/style.css"):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "no-cache"
        for path in ("/v1/page", "/v1/folder/photos/a.png", "/v1/folder/annotations/a.png"):
            assert (await client.get(path)).status_code == 401
            headers = {"Authorization": f"Bearer {token}"}
            assert (await client.get(path, headers=headers)).status_code == 200

    with_page(photos, work, token=token)
