"""The page in a browser, driven as its users drive it: by pixels of the photo, keys and files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Page

from samfast import coco_rle

SECONDS = 60_000.0  # of a test on a busy machine


class PhotoPage:
    """One tab."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.set_default_timeout(SECONDS)

    def open(self, address: str, photo: str | None = None) -> PhotoPage:
        """Go to the page, and wait until the photo can be clicked."""
        self.page.goto(f"{address}/#photo={photo}" if photo else address)
        if photo:
            self.ready(photo)
        return self

    def ready(self, photo: str) -> None:
        self.page.wait_for_function(
            "name => samfast.photo?.ready && samfast.photo.name === name", arg=photo
        )

    def reload(self, photo: str) -> None:
        self.page.reload()
        self.ready(photo)

    def window(self, x: float, y: float) -> tuple[float, float]:
        """Where the middle of a pixel of the photo lies in the window."""
        place = self.page.evaluate("spot => samfast.view.toWindow(spot)", [x + 0.5, y + 0.5])
        return place[0], place[1]

    def click(self, x: int, y: int, *modifiers: Any) -> None:
        """Click a pixel of the photo, and wait for what it yields."""
        for key in modifiers:
            self.page.keyboard.down(key)
        self.page.mouse.click(*self.window(x, y))
        for key in modifiers:
            self.page.keyboard.up(key)
        self.answered()

    def drag(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """Drag between two corners of pixels."""
        self.page.mouse.move(*self.window(x0 - 0.5, y0 - 0.5))
        self.page.mouse.down()
        self.page.mouse.move(*self.window((x0 + x1) / 2, (y0 + y1) / 2))
        self.page.mouse.move(*self.window(x1 - 0.5, y1 - 0.5))
        self.page.mouse.up()
        self.answered()

    def answered(self) -> None:
        self.page.wait_for_function("() => !samfast.clicks.waiting.length")

    def everything_found(self) -> None:
        """Wait until the search for everything is over, which takes long on a busy machine."""
        condition = "() => samfast.everything.on && !samfast.everything.searching"
        self.page.wait_for_function(condition, timeout=4 * SECONDS)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def saved(self) -> None:
        """Wait until the server has everything."""
        self.page.wait_for_selector('#save-state[data-state="clean"]')

    def objects(self) -> list[dict[str, Any]]:
        """The objects: key, class, name, active, and RLE as the page writes it."""
        objects: list[dict[str, Any]] = self.page.evaluate(
            """async () => {
                const { formatMask } = await import("./rle.js");
                return samfast.work.history.objects.map((each) => ({
                    key: each.key,
                    class: samfast.classes.get(each.classKey).name,
                    name: each.name,
                    active: each.key === samfast.work.history.now.active,
                    rle: formatMask(each.mask),
                }));
            }"""
        )
        return objects

    def masks(self) -> list[NDArray[np.bool_]]:
        """The pixels that the page itself has of each object, not its RLE."""
        found = self.page.evaluate(
            """async () => {
                const { pixelsOf } = await import("./rle.js");
                return samfast.work.history.objects.map(({ mask }) => {
                    const text = Array.from(pixelsOf(mask), (each) => String(each)).join("");
                    return { height: mask.height, width: mask.width, text };
                });
            }"""
        )
        return [pixels(each) for each in found]

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def wait(self, condition: str, arg: Any = None) -> None:
        self.page.wait_for_function(condition, arg=arg)

    def toast(self, part: str) -> None:
        """Wait for a message that has these words."""
        self.page.wait_for_selector(f".toast:has-text({part!r})")


def pixels(value: dict[str, Any]) -> NDArray[np.bool_]:
    """A mask that the page gave out as a text of 0 and 1."""
    flat = np.frombuffer(value["text"].encode(), np.uint8) == ord("1")
    return flat.reshape(value["height"], value["width"])


def best(masks: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the API's masks the one with the highest predicted IoU."""
    return max(masks, key=lambda mask: mask["predicted_iou"])


def decoded(mask: dict[str, Any]) -> NDArray[np.bool_]:
    """The pixels of one of the API's masks."""
    return coco_rle.decode(mask["segmentation"])


OpenTab = Callable[..., PhotoPage]
"""Opens a tab in a context of its own, or in the `context=` given."""
