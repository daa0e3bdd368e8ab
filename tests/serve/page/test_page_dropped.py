"""Photos that are dropped on the page, a server that wants a token, and rules that hold for all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from tests.serve.page.label_server import CAT, CUP, SKIMAGE_DATA, Server
from tests.serve.page.photo_page import best, decoded

TOKEN = "no-secret-in-a-test"
PAGE = Path(__file__).resolve().parents[3] / "samfast" / "serve" / "page"
EYE = (170, 105)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server without a folder, which wants a token."""
    path = tmp_path_factory.mktemp("token") / "token.txt"
    path.write_text(TOKEN)
    server = Server("serve", "--token-file", str(path))
    yield server.start()
    server.stop()


@pytest.fixture
def page(tab, server):
    """The page, past the question for the token."""
    page = tab().open(server.address)
    page.page.fill("#token", TOKEN)
    page.press("Enter")
    page.page.wait_for_selector("#welcome")
    return page


def drop(page, name: str, data: bytes) -> None:
    page.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})


def test_a_dropped_photo_is_clicked_and_a_reload_restores_it(page, server):
    photo = (SKIMAGE_DATA / CAT).read_bytes()
    drop(page, CAT, photo)
    page.ready(CAT)
    page.click(*EYE)
    (mask,) = page.masks()
    assert 0 < mask.sum() < mask.size
    page.press("Enter", "c")
    page.page.keyboard.type("cat's eye")
    page.press("Enter")
    page.click(340, 120)
    before = [(each["rle"], each["class"]) for each in page.objects()]
    assert [kind for _, kind in before] == ["object", "cat's eye"]
    page.page.evaluate("samfast.work.writing")
    page.reload(CAT)
    assert [(each["rle"], each["class"]) for each in page.objects()] == before
    # Another photo, and back: what was made of each is kept.
    drop(page, CUP, (SKIMAGE_DATA / CUP).read_bytes())
    page.ready(CUP)
    assert page.objects() == []


def test_files_dropped_by_the_mouse_are_taken(page):
    data = list((SKIMAGE_DATA / CAT).read_bytes())
    page.page.evaluate(
        """(data) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(data)], "cat.png", {type: "image/png"}));
            for (const type of ["dragenter", "dragover", "drop"]) {
                dispatchEvent(new DragEvent(type, { dataTransfer: transfer, cancelable: true }));
                globalThis.seen = globalThis.seen || !document.getElementById("drop").hidden;
            }
        }""",
        data,
    )
    assert page.page.evaluate("seen")
    page.ready("cat.png")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("notes.png", b"no image at all", "not an image"),
        ("cut.png", (SKIMAGE_DATA / CAT).read_bytes()[:5000], "damaged"),
        ("empty.png", b"", "image"),
    ],
)
def test_a_file_that_is_no_photo_shows_a_clear_line(page, name, data, words):
    drop(page, name, data)
    page.page.wait_for_selector("#failure")
    assert words in page.text("#failure-text")
    assert not re.search(r"undefined|\[object|null", page.text("#failure-text"))
    # The next one works.
    drop(page, CAT, (SKIMAGE_DATA / CAT).read_bytes())
    page.ready(CAT)
    assert not page.page.is_visible("#failure")


def test_a_wrong_token_is_asked_again(tab, server):
    page = tab().open(server.address)
    page.page.fill("#token", "something-else")
    page.press("Enter")
    page.page.wait_for_selector("#token-text:has-text('not the server')")
    page.page.fill("#token", TOKEN)
    page.press("Enter")
    page.page.wait_for_selector("#welcome")


def test_the_page_keeps_its_own_rules_for_scripts_and_other_sites(browser: Browser, server):
    """Without the bypass that the other tests need: nothing is blocked, nothing from elsewhere."""
    context = browser.new_context()
    page = context.new_page()
    said: list[str] = []
    urls: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: urls.append(request.url))
    page.goto(server.address)
    page.wait_for_selector("#token-dialog")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#welcome")
    context.close()
    refused = "401"  # before the token is known
    assert [line for line in said if not line.startswith("verbose") and refused not in line] == []
    assert all(url.startswith(server.address) for url in urls)


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG defines it."""
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_text_has_contrast_on_every_ground():
    css = (PAGE / "style.css").read_text()
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css))
    for ground in ("canvas", "ground", "raised", "raised-2"):
        for text in ("text", "muted", "good", "bad"):
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    assert contrast(colour["accent-text"], colour["accent"]) >= 7


def test_everything_has_a_name_and_fingers_find_it(tab, server):
    """On a phone: controls have names, and are large enough to be tapped."""
    page = tab(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page.open(server.address)
    page.page.fill("#token", TOKEN)
    page.press("Enter")
    page.page.wait_for_selector("#welcome")
    drop(page, CAT, (SKIMAGE_DATA / CAT).read_bytes())
    page.ready(CAT)
    page.page.touchscreen.tap(*page.window(*EYE))
    page.answered()
    page.page.tap("#panel-toggle")
    page.page.wait_for_selector("#panel[data-open]")
    problems = page.page.evaluate(
        """() => [...document.querySelectorAll(
            "button, input, select, a[href], [role=application]")]
            .filter((each) => each.checkVisibility({ visibilityProperty: true }))
            .filter((each) => !each.matches(".skip"))
            .flatMap((each) => {
                const place = (each.closest("label") ?? each).getBoundingClientRect();
                const name = each.getAttribute("aria-label") || each.textContent.trim() ||
                    each.labels?.[0]?.textContent.trim() || each.title;
                const size = Math.min(place.width, place.height);
                const found = [];
                if (!name) found.push(`no name: ${each.outerHTML}`);
                if (size < 28) found.push(`${size} px: ${each.outerHTML.slice(0, 120)}`);
                return found;
            })"""
    )
    assert problems == []
    # Nothing is cut off at the side.
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_reduced_motion_is_respected(tab, server):
    page = tab(reduced_motion="reduce").open(server.address)
    page.page.wait_for_selector("#token-dialog")
    moving = page.page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((each) => {
            const style = getComputedStyle(each);
            return style.animationName !== "none" ||
                style.transitionDuration.split(",").some((time) => parseFloat(time) > 0);
        }).length"""
    )
    assert moving == 0


def test_the_mask_of_a_dropped_photo_is_the_api_s(page, server):
    import httpx

    photo = (SKIMAGE_DATA / CAT).read_bytes()
    drop(page, CAT, photo)
    page.ready(CAT)
    page.click(*EYE)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    added = httpx.post(f"{server.address}/v1/images", content=photo, headers=headers).json()
    body = {"objects": [{"points": [EYE], "labels": [1]}], "multimask": True}
    url = f"{server.address}/v1/images/{added['id']}/predict"
    answer = httpx.post(url, json=body, headers=headers, timeout=60).json()
    expected = decoded(best(answer["objects"][0]["masks"]))
    np.testing.assert_array_equal(page.masks()[0], expected)
