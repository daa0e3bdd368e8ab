"""What clicks, boxes, keys and fingers do to the objects of a photo."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from samfast import coco_rle
from tests.serve.page.label_server import CUP, SKIMAGE_DATA
from tests.serve.page.photo_page import best, decoded

PHOTO = (SKIMAGE_DATA / CUP).read_bytes()
COFFEE = [300, 150]
SPOON = [355, 280]
SAUCER = [130, 200]


@pytest.fixture
def page(tab, label_server, clean_folder):
    return tab().open(label_server.address, CUP)


def api_mask(server, points, labels, box=None, ref=None):
    """The mask that the API gives for prompts, as the page asks for it."""
    prompts = {"points": points, "labels": labels}
    if box:
        prompts["box"] = box
    if ref:
        prompts["mask"] = ref
    ambiguous = len(points) == 1 and not box and not ref
    return best(server.predict(PHOTO, prompts, multimask=ambiguous))


def test_a_click_yields_the_mask_that_the_api_gives_pixel_for_pixel(page, label_server):
    page.click(*COFFEE)
    expected = api_mask(label_server, [COFFEE], [1])
    (mask,) = page.masks()
    np.testing.assert_array_equal(mask, decoded(expected))
    assert 0 < mask.sum() < mask.size
    assert page.objects()[0]["rle"] == expected["segmentation"]


def test_clicks_add_and_shift_clicks_remove_from_the_object(page, label_server):
    page.click(*SAUCER)
    page.click(*SPOON)
    page.click(*COFFEE, "Shift")
    first = api_mask(label_server, [SAUCER], [1])
    second = api_mask(label_server, [SAUCER, SPOON], [1, 1], ref=first["ref"])
    third = api_mask(label_server, [SAUCER, SPOON, COFFEE], [1, 1, 0], ref=second["ref"])
    (mask,) = page.masks()
    np.testing.assert_array_equal(mask, decoded(third))
    assert (decoded(third) != decoded(first)).any()


def test_the_preview_is_what_the_click_takes(page):
    page.page.mouse.move(*page.window(*SPOON))
    page.wait("() => samfast.clicks.hover")
    shown = page.page.evaluate(
        "async () => (await import('./rle.js')).formatMask(samfast.clicks.hover.mask)"
    )
    assert page.objects() == []
    # The click needs no second answer.
    requests = []
    page.page.on("request", lambda request: requests.append(request.url))
    page.click(*SPOON)
    assert [each["rle"] for each in page.objects()] == [shown]
    assert not any(url.endswith("/predict") for url in requests)


def test_a_drag_draws_a_box(page, label_server):
    page.drag(335, 235, 420, 345)
    expected = api_mask(label_server, [], [], box=[335, 235, 420, 345])
    (mask,) = page.masks()
    np.testing.assert_array_equal(mask, decoded(expected))


def test_undo_and_redo_restore_each_step(page):
    page.click(*COFFEE)
    one = page.objects()
    page.click(*COFFEE[:1], COFFEE[1] + 60)
    two = page.objects()
    page.press("Enter")
    page.click(*SPOON)
    three = page.objects()
    assert len({json.dumps(each) for each in (one, two, three)}) == 3

    def rles():
        return [each["rle"] for each in page.objects()]

    page.press("Control+z")
    assert rles() == [each["rle"] for each in two]
    page.press("Control+z")
    assert rles() == [each["rle"] for each in one]
    page.press("Control+z", "Control+z")
    assert rles() == []
    page.press("Control+Shift+z", "Control+y", "Control+Shift+z")
    assert rles() == [each["rle"] for each in three]
    assert page.page.is_disabled("#redo")


@pytest.mark.timeout(600)
def test_e_outlines_everything_and_a_click_keeps_one(page, label_server, clean_folder):
    page.press("e")
    page.everything_found()
    image = httpx.post(f"{label_server.address}/v1/images", content=PHOTO).json()["id"]
    grid = {"points_per_side": 16}  # what the page asks of a CPU
    url = f"{label_server.address}/v1/images/{image}/segment"
    records = [json.loads(line) for line in httpx.post(url, json=grid, timeout=240).iter_lines()]
    count = page.page.evaluate("samfast.everything.candidates.length")
    assert count == len(records) > 3
    # The smallest outline at a pixel of the spoon is kept, and only that.
    masks = [coco_rle.decode(record["segmentation"]) for record in records]
    around = [mask for mask in masks if mask[SPOON[1], SPOON[0]]]
    page.click(*SPOON)
    (kept,) = page.masks()
    np.testing.assert_array_equal(kept, min(around, key=np.sum))
    # A second click takes it back, a third keeps it again.
    page.click(*SPOON)
    assert page.objects() == []
    page.click(*SPOON)
    page.press("Escape")
    page.wait("() => !samfast.everything.on")
    page.saved()
    assert len(json.loads((clean_folder / "annotations.json").read_text())["annotations"]) == 1
    # No prompts made this mask: clicks join the masks of their own to it, and cut them out.
    page.click(*SPOON, "Control")
    page.click(*COFFEE)
    added = decoded(api_mask(label_server, [COFFEE], [1]))
    np.testing.assert_array_equal(page.masks()[0], kept | added)
    page.click(*COFFEE, "Shift")
    np.testing.assert_array_equal(page.masks()[0], kept & ~added)


def test_what_is_an_object_already_is_not_outlined_again(page):
    """With a server that finds a block, the same without a column, and another block."""
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:12, 2:12] = True
    masks[1, 2:12, 3:12] = True
    masks[2, 2:12, 15:25] = True
    records = [{"segmentation": coco_rle.encode(mask), "predicted_iou": 0.9} for mask in masks]
    left = page.page.evaluate(
        """async (records) => {
            const { Everything } = await import("./everything.js");
            const { formatMask, parseMask } = await import("./rle.js");
            const api = { segment: async (id, { onRecord }) => records.forEach(onRecord) };
            const everything = new Everything({ api, render() {} });
            const objects = [{ mask: parseMask(records[1].segmentation) }];
            await everything.find({ id: "" }, objects);
            return everything.candidates.map(({ mask }) => formatMask(mask));
        }""",
        records,
    )
    assert left == [records[2]["segmentation"]]


def test_brackets_take_the_other_masks_of_a_click(page, label_server):
    masks = label_server.predict(PHOTO, {"points": [SAUCER], "labels": [1]}, multimask=True)
    by_area = [mask["segmentation"] for mask in sorted(masks, key=lambda mask: mask["area"])]
    page.click(*SAUCER)
    page.press("[", "[", "[")
    assert page.objects()[0]["rle"] == by_area[0]
    page.press("]")
    assert page.objects()[0]["rle"] == by_area[1]
    page.press("]", "]")
    assert page.objects()[0]["rle"] == by_area[2]


def test_objects_have_classes_names_and_colours(page, clean_folder):
    page.press("c")
    page.page.keyboard.type("cup")
    page.press("Enter")
    page.click(*COFFEE)
    page.press("Enter", "c")
    page.page.keyboard.type("spoon")
    page.press("Enter")
    page.click(*SPOON)
    page.press("F2")
    page.page.keyboard.type("the silver one")
    page.press("Enter")
    assert [(each["class"], each["name"]) for each in page.objects()] == [
        ("cup", ""),
        ("spoon", "the silver one"),
    ]
    page.press("K")
    page.saved()
    saved = json.loads((clean_folder / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in saved["categories"]}
    assert [names[each["category_id"]] for each in saved["annotations"]] == ["cup", "spoon"]
    assert saved["annotations"][1]["name"] == "the silver one"
    colours = page.page.evaluate(
        "samfast.work.history.objects.map((each) => samfast.labels.colourOf(each))"
    )
    assert len(set(colours)) == 2
    # A digit classifies the chosen object.
    page.press("k")
    active = [index for index, each in enumerate(page.objects()) if each["active"]]
    page.press("1")
    assert page.objects()[active[0]]["class"] == page.page.evaluate("samfast.classes.all[0].name")


def test_all_of_it_by_keyboard(page, label_server):
    """From the middle of the photo: a click, a box, a removal, undo, another photo."""
    page.page.focus("#canvas")
    page.press("ArrowRight")
    spot = page.page.evaluate("samfast.tools.cross")
    assert spot == [300, 200]
    page.press("a")
    page.answered()
    np.testing.assert_array_equal(page.masks()[0], decoded(api_mask(label_server, [spot], [1])))
    page.press("Shift+ArrowUp", "r")
    page.answered()
    assert page.page.evaluate("samfast.work.history.active.prompts.labels") == [1, 0]
    page.press("Enter", "b", "Shift+ArrowRight", "Shift+ArrowDown", "b")
    page.answered()
    box = page.page.evaluate("samfast.work.history.active.prompts.box")
    np.testing.assert_array_equal(page.masks()[1], decoded(api_mask(label_server, [], [], box=box)))
    page.press("Delete")
    assert len(page.objects()) == 1
    before = page.page.evaluate("samfast.view.scale")
    page.press("+", "+", "-", "Alt+ArrowLeft")
    assert page.page.evaluate("samfast.view.scale") == pytest.approx(before * 1.25)
    page.press("0", "?")
    assert page.page.is_visible("#help-dialog")
    page.press("Escape", "p")
    page.ready("chelsea.png")
    page.press("n")
    page.ready(CUP)
    assert len(page.objects()) == 1


def test_every_key_of_the_help_is_bound_once(page):
    """No two bindings take one event, so that none hides another."""
    clashes = page.page.evaluate(
        """() => {
            const keys = [..."abcdefghijklmnopqrstuvwxyz0123456789[]+-?=", "Enter", "Escape", "F2",
                "Delete", "ArrowLeft"];
            const clashes = [];
            for (const key of keys) for (const shiftKey of [false, true])
            for (const ctrlKey of [false, true]) for (const altKey of [false, true]) {
                const event = new KeyboardEvent("keydown", {
                    key: shiftKey && key.length === 1 ? key.toUpperCase() : key,
                    shiftKey, ctrlKey, altKey });
                document.activeElement.blur();
                const hits = samfast.bindings.filter((each) => each.match(event));
                if (hits.length > 1) clashes.push([key, hits.map((each) => each.text)]);
            }
            return clashes;
        }"""
    )
    assert clashes == []


def test_a_finger_adds_and_a_long_press_removes(tab, label_server, clean_folder):
    page = tab(viewport={"width": 412, "height": 839}, has_touch=True, is_mobile=True)
    page.open(label_server.address, CUP)
    page.page.touchscreen.tap(*page.window(*SAUCER))
    page.answered()
    assert len(page.objects()) == 1
    # Playwright has no long press: the events of one.
    x, y = page.window(*COFFEE)
    send = """([type, x, y]) => document.getElementById("canvas").dispatchEvent(
        new PointerEvent(type, { pointerId: 5, pointerType: "touch", clientX: x, clientY: y,
                                 button: 0, buttons: 1, isPrimary: true, bubbles: true }))"""
    page.page.evaluate("HTMLCanvasElement.prototype.setPointerCapture = () => {}")
    page.page.evaluate(send, ["pointerdown", x, y])
    page.wait("() => samfast.work.history.active?.prompts.labels.length === 2")
    page.page.evaluate(send, ["pointerup", x, y])
    page.answered()
    assert page.page.evaluate("samfast.work.history.active.prompts.labels") == [1, 0]
    # Or by the button for it.
    page.page.tap('[data-tool="remove"]')
    page.page.touchscreen.tap(*page.window(*SPOON))
    page.answered()
    assert page.page.evaluate("samfast.work.history.active.prompts.labels") == [1, 0, 0]
    page.page.tap("#done")
    assert not any(each["active"] for each in page.objects())


def test_zooming_keeps_the_pixel_below_the_pointer(page):
    x, y = map(round, page.window(*SPOON))
    below = "place => samfast.view.toPhoto(...place)"
    before = page.page.evaluate(below, [x, y])
    page.page.mouse.move(x, y)
    page.page.mouse.wheel(0, -600)
    page.wait("() => samfast.view.scale > 2")
    assert page.page.evaluate(below, [x, y]) == pytest.approx(before)
    page.click(*SPOON)
    assert page.page.evaluate("samfast.work.history.active.prompts.points") == [SPOON]


@pytest.mark.slow
def test_the_first_outline_is_there_within_100_ms(page):
    """Of a click anywhere, without a preview; the median of seven, drawn on the canvas."""
    page.page.uncheck("#preview")
    page.page.check("#one-click")
    page.page.evaluate(
        """() => {
            globalThis.times = [];
            document.getElementById("canvas").addEventListener("pointerup", () => {
                const began = performance.now();
                const count = samfast.work.history.objects.length;
                const before = samfast.view.onFrame;
                samfast.view.onFrame = () => {
                    before();
                    if (samfast.work.history.objects.length === count) return;
                    times.push(performance.now() - began);
                    samfast.view.onFrame = before;
                };
            }, true);
        }"""
    )
    for x, y in ([300, 150], [355, 280], [130, 200], [60, 60], [500, 60], [220, 90], [560, 350]):
        page.click(x, y)
        page.saved()
    times = sorted(page.page.evaluate("times"))
    print("click to outline, ms:", [round(each) for each in times])
    assert times[len(times) // 2] < 100
