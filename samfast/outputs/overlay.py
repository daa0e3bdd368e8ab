"""A picture of the masks: each in its colour over the photo, outlined, with the prompt drawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from samfast.atomic_files import atomic_open
from samfast.coco_rle import MaskSequence
from samfast.errors import InputError, OutputError
from samfast.outputs.colours import distinct_colours
from samfast.outputs.labels import by_area, paint
from samfast.types import Prompts

_FILL = 0.45
_FOREGROUND = (38, 190, 76)
_BACKGROUND = (226, 48, 48)
_BANDS = 128
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def draw_overlay(
    pixels: NDArray[np.uint8],
    masks: MaskSequence,
    prompts: Prompts | None = None,
) -> NDArray[np.uint8]:
    """The photo with its masks.

    pixels   (H, W, 3) uint8 RGB
    masks    N masks of (H, W): arrays, tensors or COCO RLE. Mask i has colour i of
             `distinct_colours`; of overlapping ones the smaller is on top
    prompts  what was asked: foreground points are drawn green with a plus, background points red
             with a minus, boxes green
    returns  (H, W, 3) uint8 RGB; lines and points are wider on larger photos

    Raises InputError if a mask is of another size.
    """
    height, width = pixels.shape[:2]
    order = by_area(masks, (height, width))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    ranks = np.ascontiguousarray(paint(masks, (height, width), rank, order))
    colours = np.zeros((len(order) + 1, 3), np.float32)
    colours[1:] = distinct_colours(len(order))[order]
    edges = outlines(ranks, _thickness(height, width))
    out = np.empty_like(pixels, order="C")
    for start in range(0, height, _BANDS):  # in bands, since floats of a large photo are large
        band = slice(start, start + _BANDS)
        opacity = np.where(ranks[band] > 0, np.float32(_FILL), np.float32(0))
        opacity[edges[band]] = 1
        photo = pixels[band].astype(np.float32)
        out[band] = np.round(photo + opacity[:, :, None] * (colours[ranks[band]] - photo))
    if prompts is not None:
        out = _draw_prompts(out, prompts)
    return out


def write_overlay(
    path: str | os.PathLike[str],
    pixels: NDArray[np.uint8],
    masks: MaskSequence,
    prompts: Prompts | None = None,
) -> None:
    """draw_overlay's picture as a PNG or JPEG file, by the name's end.

    Raises InputError as draw_overlay does, OutputError for another ending or if the file cannot be
    written.
    """
    kind = _FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        raise OutputError(f"{os.fspath(path)}: an overlay is PNG or JPEG; name it .png or .jpg")
    picture = Image.fromarray(draw_overlay(pixels, masks, prompts))
    options: dict[str, Any] = {"compress_level": 3} if kind == "PNG" else {"quality": 92}
    with atomic_open(path) as file:
        picture.save(file, kind, **options)


def outlines(ranks: NDArray[np.uint16], thickness: int) -> NDArray[np.bool_]:
    """Pixels of a region that have a lower-ranked one within `thickness` pixels.

    ranks    (H, W), 0 for background, higher on top
    returns  (H, W) bool

    So each border is drawn once, inside the upper region, and the photo's own edge is none.
    """
    lowest = ranks
    for step in range(thickness):  # a plus, a square, in turn: together nearly round
        source = lowest
        lowest = source.copy()
        np.minimum(lowest[1:], source[:-1], out=lowest[1:])
        np.minimum(lowest[:-1], source[1:], out=lowest[:-1])
        if step % 2:
            source = lowest.copy()
        np.minimum(lowest[:, 1:], source[:, :-1], out=lowest[:, 1:])
        np.minimum(lowest[:, :-1], source[:, 1:], out=lowest[:, :-1])
    return lowest < ranks


def _thickness(height: int, width: int) -> int:
    return max(1, round(max(height, width) / 450))


def _draw_prompts(pixels: NDArray[np.uint8], prompts: Prompts) -> NDArray[np.uint8]:
    picture = Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    line = _thickness(height, width)
    draw = ImageDraw.Draw(picture)
    for box in _boxes(prompts):
        x0, y0, x1, y1 = (round(value) for value in box)
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        around = (corners[0] - line, corners[1] - line, corners[2] + line, corners[3] + line)
        draw.rectangle(around, outline=(255, 255, 255), width=3 * line)  # a rim, for green photos
        draw.rectangle(corners, outline=_FOREGROUND, width=line)
    radius = max(4, round(max(height, width) / 80))
    for x, y, label in _points(prompts):
        if label in (0, 1):
            marker = _marker(radius, bool(label))
            corner = (round(x) - marker.width // 2, round(y) - marker.height // 2)
            picture.paste(marker, corner, marker)
    return np.array(picture)


def _marker(radius: int, foreground: bool) -> Image.Image:
    """A disc with a white rim, and a plus or minus: the colours alone look alike to many people."""
    scale = 4  # drawn larger and reduced: ImageDraw's own circles are jagged
    side = (2 * radius + 1) * scale
    large = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    draw = ImageDraw.Draw(large)
    rim, arm, bar = side * 0.12, side * 0.22, side * 0.07
    draw.ellipse((0, 0, side - 1, side - 1), fill=(255, 255, 255, 255))
    draw.ellipse(
        (rim, rim, side - 1 - rim, side - 1 - rim), fill=_FOREGROUND if foreground else _BACKGROUND
    )
    centre = (side - 1) / 2
    draw.rectangle(
        (centre - arm, centre - bar, centre + arm, centre + bar), fill=(255, 255, 255, 255)
    )
    if foreground:
        draw.rectangle(
            (centre - bar, centre - arm, centre + bar, centre + arm), fill=(255, 255, 255, 255)
        )
    return large.reduce(scale)


def _points(prompts: Prompts) -> Iterator[tuple[float, float, int]]:
    points = [] if prompts.points is None else [_host(own).reshape(-1, 2) for own in prompts.points]
    labels = [] if prompts.labels is None else [_host(own).reshape(-1) for own in prompts.labels]
    if [len(own) for own in points] != [len(own) for own in labels]:
        raise InputError(
            "points without as many labels; give each point a label: 1 foreground, 0 background"
        )
    for own, of_own in zip(points, labels, strict=True):
        for (x, y), label in zip(own, of_own, strict=True):
            yield float(x), float(y), int(label)


def _boxes(prompts: Prompts) -> NDArray[np.float64]:
    return np.zeros((0, 4)) if prompts.boxes is None else _host(prompts.boxes).reshape(-1, 4)


def _host(values: Any) -> NDArray[np.float64]:
    return np.asarray(
        values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64
    )
