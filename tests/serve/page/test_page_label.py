"""Labelling a folder: what is saved, what survives, and who may change it meanwhile."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from samfast import coco_rle
from tests.serve.page.label_server import (
    CAT,
    CUP,
    SKIMAGE_DATA,
    Server,
    annotations_of,
    photo_folder,
)

COFFEE = (300, 150)
SPOON = (355, 280)


@pytest.fixture
def page(tab, label_server, clean_folder):
    return tab().open(label_server.address, CUP)


def masks_in(folder: Path) -> list[dict]:
    return [each["segmentation"] for each in annotations_of(folder)["annotations"]]


def rles(page) -> list[dict]:
    return [each["rle"] for each in page.objects()]


def test_objects_are_saved_as_they_are_made_in_a_file_that_pycocotools_reads(page, clean_folder):
    page.click(*COFFEE)
    page.saved()
    page.press("Enter")
    page.click(*SPOON)
    page.saved()
    coco = COCO(clean_folder / "annotations.json")
    (image,) = coco.loadImgs(coco.getImgIds())
    assert (image["file_name"], image["width"], image["height"]) == (CUP, 600, 400)
    saved = coco.loadAnns(coco.getAnnIds())
    for mask, annotation in zip(page.masks(), saved, strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_rle.bounding_box(annotation["segmentation"])
        assert 0 < annotation["score"] <= 1.1
    assert [each["point_coords"] for each in saved] == [[list(COFFEE)], [list(SPOON)]]
    # An undo is saved as well.
    page.press("Control+z")
    page.wait("() => samfast.work.history.objects.length === 1")
    page.saved()
    assert masks_in(clean_folder) == rles(page)


def test_a_reload_restores_what_was_made(page):
    page.click(*COFFEE)
    page.press("c")
    page.page.keyboard.type("coffee")
    page.press("Enter")
    page.saved()
    before = [(each["rle"], each["class"]) for each in page.objects()]
    page.reload(CUP)
    assert [(each["rle"], each["class"]) for each in page.objects()] == before
    # The object still is what clicks refine, from its own clicks.
    page.click(*COFFEE, "Control")
    page.click(*SPOON)
    assert page.page.evaluate("samfast.work.history.active.prompts.points") == [
        list(COFFEE),
        list(SPOON),
    ]


def test_existing_annotations_are_shown_edited_and_otherwise_kept(tab, label_server, clean_folder):
    square = [[100, 100, 140, 100, 140, 130, 100, 130]]
    data: dict[str, Any] = {
        "info": {"year": 2020},
        "licenses": [{"id": 4}],
        "images": [
            {"id": 7, "file_name": CUP, "width": 600, "height": 400, "license": 4},
            {"id": 9, "file_name": "elsewhere.jpg", "width": 10, "height": 10},
        ],
        "annotations": [
            {"id": 3, "image_id": 7, "category_id": 18, "segmentation": square, "area": 1200.0,
             "bbox": [100, 100, 40, 30], "iscrowd": 0, "attributes": {"shiny": True}},
            {"id": 5, "image_id": 7, "category_id": 18, "bbox": [1, 1, 5, 5], "iscrowd": 0},
            {"id": 6, "image_id": 9, "category_id": 20, "bbox": [1, 1, 5, 5], "iscrowd": 0},
        ],
        "categories": [{"id": 18, "name": "sugar", "color": [255, 0, 0]}, {"id": 20, "name": "b"}],
    }  # fmt: skip
    (clean_folder / "annotations.json").write_text(json.dumps(data))
    page = tab().open(label_server.address, CUP)
    (shown,) = page.objects()
    assert shown["class"] == "sugar"
    mask = np.zeros((400, 600), bool)
    mask[100:130, 100:140] = True
    np.testing.assert_array_equal(page.masks()[0], mask)
    assert "One annotation" in page.text("#kept-aside")
    page.click(*SPOON)
    page.saved()
    saved = annotations_of(clean_folder)
    by_id = {each["id"]: each for each in saved["annotations"]}
    # The untouched ones are the same to the last key; the new one has the next id.
    assert [by_id[each["id"]] for each in data["annotations"]] == data["annotations"]
    assert set(by_id) == {3, 5, 6, 7}
    assert {name: saved[name] for name in ("info", "licenses", "images", "categories")} == {
        name: data[name] for name in ("info", "licenses", "images", "categories")
    }
    # Now the polygon is edited: its other keys stay.
    page.press("Enter")
    page.click(110, 110, "Control")
    page.click(*COFFEE)
    page.saved()
    changed = {each["id"]: each for each in annotations_of(clean_folder)["annotations"]}[3]
    assert changed["attributes"] == {"shiny": True}
    assert coco_rle.decode(changed["segmentation"])[mask].all()
    assert changed["area"] > 1200


def test_two_tabs_do_not_overwrite_each_other(tab, page, label_server, clean_folder):
    other = tab().open(label_server.address, CUP)
    page.click(*COFFEE)
    page.saved()
    # The other tab does not know of it yet, and saves its own.
    other.click(*SPOON)
    other.saved()
    other.toast("Another tab changed this photo too")
    assert sorted(map(str, masks_in(clean_folder))) == sorted(map(str, rles(other)))
    assert len(rles(other)) == 2
    # The first tab takes it over when it saves, and when it is looked at.
    page.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait("() => samfast.work.history.objects.length === 2")
    # Both change one object: both masks stay.
    for each in (page, other):
        each.click(*COFFEE, "Control")
    page.click(300, 60)
    page.saved()
    other.click(220, 330)
    other.saved()
    other.toast("Both tabs' masks")
    assert len(masks_in(clean_folder)) == 3
    assert rles(page)[0] in masks_in(clean_folder)
    # One deletes what the other leaves alone.
    page.reload(CUP)
    other.page.evaluate("samfast.work.refresh()")
    page.click(*SPOON, "Control")
    page.press("Delete")
    page.saved()
    other.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    other.wait("() => samfast.work.history.objects.length === 2")


def test_tabs_of_one_browser_tell_each_other(tab, page, label_server):
    other = tab(context=page.page.context).open(label_server.address, CUP)
    page.click(*COFFEE)
    page.saved()
    other.wait("() => samfast.work.history.objects.length === 1")
    assert rles(other) == rles(page)


def test_a_program_that_changes_the_file_is_not_overwritten(page, clean_folder):
    page.click(*COFFEE)
    page.saved()
    path = clean_folder / "annotations.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["reviewed"] = "by a program"
    data["info"] = {"note": 1}
    path.write_text(json.dumps(data))
    page.press("Enter")
    page.click(*SPOON)
    page.saved()
    saved = annotations_of(clean_folder)
    assert saved["info"] == {"note": 1}
    assert [each.get("reviewed") for each in saved["annotations"]] == ["by a program", None]
    # A damaged file is never written over; the work is kept, and saved when it is mended.
    whole = path.read_text()
    path.write_text(whole[:-30])
    page.press("Enter")
    page.click(130, 200)
    page.page.wait_for_selector('#save-state[data-state="refused"]')
    assert "not JSON" in page.text("#banner-text")
    assert path.read_text() == whole[:-30]
    path.write_text(whole)
    page.page.click("#banner-retry")
    page.saved()
    assert len(masks_in(clean_folder)) == 3


def test_a_corrupt_photo_shows_a_clear_line(tab, label_server, clean_folder):
    photo = clean_folder / "b.jpg"
    photo.write_bytes((SKIMAGE_DATA / "rocket.jpg").read_bytes()[:3000])
    try:
        page = tab()
        page.page.goto(f"{label_server.address}/#photo=b.jpg")
        page.page.wait_for_selector("#failure")
        assert "truncated or damaged image data" in page.text("#failure-text")
        page.page.click("#failure-next")
        page.ready(CAT)
        assert not page.page.is_visible("#failure")
        page.click(170, 105)
        assert len(page.objects()) == 1
    finally:
        photo.unlink()


def test_a_lost_server_is_said_and_no_work_is_lost(tab, tmp_path):
    folder = photo_folder(tmp_path / "photos")
    server = Server("label", str(folder), "--no-browser").start()
    try:
        page = tab().open(server.address, CUP)
        page.click(*COFFEE)
        page.saved()
        server.kill()
        # What needs no server is done, kept, and said to be unsaved.
        page.page.dblclick("#classes .pick")
        page.page.keyboard.type("drink")
        page.press("Enter")
        page.page.wait_for_selector('#save-state[data-state="offline"]')
        assert "does not answer" in page.text("#banner-text")
        assert "kept in this browser" in page.text("#banner-text")
        # A click waits for the server.
        page.press("Enter")
        page.page.mouse.click(*page.window(*SPOON))
        assert page.page.evaluate("samfast.clicks.waiting.length") == 1
        # The server is back, with nothing in its memory: the photo is encoded again.
        server.start()
        page.page.click("#banner-retry")
        page.answered()
        page.saved()
        page.page.wait_for_selector("#banner", state="hidden")
        assert len(rles(page)) == 2
        saved = annotations_of(folder)
        assert masks_in(folder) == rles(page)
        assert [each["name"] for each in saved["categories"]] == ["drink"]
    finally:
        server.stop()


def test_unsaved_work_survives_a_crash_of_both(tab, tmp_path):
    """The server is killed, then the tab is closed; both come back later."""
    folder = photo_folder(tmp_path / "photos")
    server = Server("label", str(folder), "--no-browser").start()
    try:
        page = tab().open(server.address, CUP)
        page.click(*COFFEE)
        page.press("Enter")
        page.click(*SPOON)
        page.saved()
        server.kill()
        page.click(*COFFEE, "Control")
        page.press("Delete")
        page.page.wait_for_selector('#save-state[data-state="offline"]')
        (left,) = rles(page)
        context = page.page.context
        page.page.close()
        assert len(masks_in(folder)) == 2
        server.start()
        # Another photo is opened: the work on the first is saved nevertheless.
        again = tab(context=context).open(server.address, CAT)
        again.wait(
            "() => samfast.photos.all.find(({ name }) => name === 'coffee.png').objects === 1"
        )
        assert masks_in(folder) == [left]
        again.press("n")
        again.ready(CUP)
        assert rles(again) == [left]
    finally:
        server.stop()


def test_photos_ahead_are_encoded_and_the_strip_counts(page, label_server, clean_folder):
    page.press("p")
    page.ready(CAT)
    requests = []
    page.page.on("request", lambda request: requests.append(request.url))
    page.reload(CAT)
    page.page.wait_for_selector("#strip img >> nth=1")
    assert any(url.endswith("/v1/prewarm") for url in requests)
    page.click(170, 105)
    page.saved()
    page.page.wait_for_selector("#strip button[aria-current] .count")
    page.press("n")
    page.ready(CUP)
    assert page.text("#photo-count") == "2 of 2"
    assert page.page.is_disabled("#next")
    page.page.click("#strip button >> nth=0")
    page.ready(CAT)
    assert len(page.objects()) == 1


def test_clicks_before_the_photo_is_ready_are_not_lost(tab, label_server, clean_folder):
    page = tab()
    page.page.goto(f"{label_server.address}/#photo={CUP}")
    page.wait("() => globalThis.samfast?.photo?.picture")
    page.page.mouse.click(*page.window(*COFFEE))
    page.ready(CUP)
    page.answered()
    assert len(page.objects()) == 1


def test_a_preview_is_of_the_photo_that_is_shown(page):
    """The mouse rests while the photo changes to a smaller one."""
    failed = []
    page.page.on("response", lambda answer: answer.status >= 400 and failed.append(answer.url))
    page.page.mouse.move(*page.window(590, 200))
    page.wait("() => samfast.clicks.hover")
    page.press("p")
    page.ready(CAT)
    page.wait("() => samfast.clicks.pointer === null || samfast.clicks.hover")
    assert page.page.evaluate("samfast.clicks.pointer?.[0] ?? 0") < 451
    assert failed == []


def test_downloads_hold_the_masks(page, tmp_path):
    page.click(*COFFEE)
    page.press("Enter", "c")
    page.page.keyboard.type("spoon")
    page.press("Enter")
    page.click(*SPOON)
    page.press("Enter")
    masks = page.masks()

    def download(kind: str) -> bytes:
        page.press("d")
        with page.page.expect_download() as got:
            page.page.click(f'[data-download="{kind}"]')
        return Path(got.value.path()).read_bytes()

    coco = json.loads(download("coco"))
    assert [each["segmentation"] for each in coco["annotations"]] == rles(page)
    assert [each["bbox"] for each in coco["annotations"]] == [
        coco_rle.bounding_box(each) for each in rles(page)
    ]
    assert {each["name"] for each in coco["categories"]} >= {"spoon"}
    check_yolo(download("yolo").decode(), masks)
    labels = np.asarray(Image.open(io.BytesIO(download("png"))))
    assert labels.dtype == np.uint8
    order = sorted(range(2), key=lambda index: -masks[index].sum())
    expected = np.zeros(labels.shape, np.uint8)
    for index in order:
        expected[masks[index]] = index + 1
    np.testing.assert_array_equal(labels, expected)
    cut = np.asarray(Image.open(io.BytesIO(download("cutout"))))
    both = masks[0] | masks[1]
    rows, columns = np.flatnonzero(both.any(1)), np.flatnonzero(both.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    np.testing.assert_array_equal(cut[..., 3], both[box] * np.uint8(255))
    photo = np.asarray(Image.open(SKIMAGE_DATA / CUP).convert("RGB"))
    np.testing.assert_array_equal(cut[..., :3][both[box]], photo[box][both[box]])


def check_yolo(text: str, masks: list[np.ndarray]) -> None:
    rows = [line.split() for line in text.splitlines()]
    assert [row[0] for row in rows] == ["0", "1"]
    for row, mask in zip(rows, masks, strict=True):
        shares = np.array(row[1:], float).reshape(-1, 2)
        ring = np.round(shares * (mask.shape[1], mask.shape[0])).astype(int).tolist()
        np.testing.assert_array_equal(filled([*ring, ring[0]], mask.shape), mask)


def filled(ring: list[list[int]], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose middle lies inside, by the even-odd rule. Lines that join parts of a mask
    run there and back, and cancel out.
    """
    flips = np.zeros((shape[0], shape[1] + 1), int)
    middles = np.arange(shape[0]) + 0.5
    for (x, y), (next_x, next_y) in pairwise(ring):
        if y == next_y:
            continue
        low, high = sorted((y, next_y))
        rows = np.flatnonzero((middles > low) & (middles < high))
        crossing = x + (middles[rows] - y) * (next_x - x) / (next_y - y)
        np.add.at(flips, (rows, np.ceil(crossing - 0.5).astype(int)), 1)
    return np.cumsum(flips, 1)[:, :-1] % 2 == 1


def test_the_whole_file_can_be_downloaded(page, label_server, clean_folder):
    page.click(*COFFEE)
    page.saved()
    answer = httpx.get(f"{label_server.address}/v1/folder/annotations.json")
    assert answer.content == (clean_folder / "annotations.json").read_bytes()
