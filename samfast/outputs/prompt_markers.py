"""Prompts drawn on a picture: points as discs with a plus or minus, and boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from samfast.errors import InputError
from samfast.types import Prompts, Size

_FOREGROUND = (38, 190, 76)
_BACKGROUND = (226, 48, 48)
_WHITE = (255, 255, 255)


def draw_prompts(picture: Image.Image, prompts: Prompts, line: int) -> None:
    """Draw prompts on an RGB picture.

    line  width of a box's line in pixels

    Raises InputError for points without as many labels.
    """
    draw = ImageDraw.Draw(picture)
    for box in _boxes(prompts):
        x0, y0, x1, y1 = (round(value) for value in box)
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        around = (corners[0] - line, corners[1] - line, corners[2] + line, corners[3] + line)
        draw.rectangle(around, outline=_WHITE, width=3 * line)  # visible on green photos
        draw.rectangle(corners, outline=_FOREGROUND, width=line)
    radius = marker_radius((picture.height, picture.width))
    for x, y, label in labelled_points(prompts):
        if label in (0, 1):
            marker = _marker(radius, bool(label))
            corner = (round(x) - marker.width // 2, round(y) - marker.height // 2)
            picture.paste(marker, corner, marker)


def marker_radius(size: Size) -> int:
    """The radius in pixels of a point's disc on a picture of that size (H, W)."""
    return max(4, round(max(size) / 80))


def _marker(radius: int, foreground: bool) -> Image.Image:
    """A disc with a white rim and a plus or minus: many people see red and green alike."""
    scale = 4  # drawn larger and reduced, because ImageDraw's circles are jagged
    side = (2 * radius + 1) * scale
    large = Image.new("RGBA", (side, side), (*_WHITE, 0))
    draw = ImageDraw.Draw(large)
    rim, arm, bar, last = side * 0.12, side * 0.22, side * 0.07, side - 1
    draw.ellipse((0, 0, last, last), fill=_WHITE)
    colour = _FOREGROUND if foreground else _BACKGROUND
    draw.ellipse((rim, rim, last - rim, last - rim), fill=colour)
    centre = last / 2
    draw.rectangle((centre - arm, centre - bar, centre + arm, centre + bar), fill=_WHITE)
    if foreground:
        draw.rectangle((centre - bar, centre - arm, centre + bar, centre + arm), fill=_WHITE)
    return large.reduce(scale)


def labelled_points(prompts: Prompts) -> Iterator[tuple[float, float, int]]:
    """(x, y, label) of every point of every object."""
    points, labels = (
        [] if given is None else [_host(each) for each in given]
        for given in (prompts.points, prompts.labels)
    )
    xy = [each.reshape(-1, 2) for each in points]
    if [len(each) for each in xy] != [each.size for each in labels]:
        raise InputError(
            "points without as many labels; give each point a label: 1 foreground, 0 background"
        )
    for each, label in zip(xy, labels, strict=True):
        yield from zip(*each.T.tolist(), map(int, label.ravel()), strict=True)


def _boxes(prompts: Prompts) -> NDArray[np.float64]:
    return np.zeros((0, 4)) if prompts.boxes is None else _host(prompts.boxes).reshape(-1, 4)


def _host(values: Any) -> NDArray[np.float64]:
    return np.asarray(
        values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64
    )
