"""The photo with its masks, coloured and outlined, and the prompts drawn on it."""

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
from samfast.errors import InputError, OutputError, shown
from samfast.outputs.colours import distinct_colours
from samfast.outputs.labels import by_area, paint
from samfast.types import Prompts

_FILL = 0.45
_FOREGROUND = (38, 190, 76)
_BACKGROUND = (226, 48, 48)
_WHITE = (255, 255, 255)
_BAND = 128  # rows
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def draw_overlay(
    pixels: NDArray[np.uint8], masks: MaskSequence, prompts: Prompts | None = None
) -> NDArray[np.uint8]:
    """The photo with its masks, coloured and outlined, and the prompts drawn on it.

    pixels   (H, W, 3) uint8 RGB
    masks    N masks of (H, W): arrays, tensors or COCO RLE. Mask i has colour i of
             `distinct_colours`; where masks overlap, the smaller is on top
    prompts  foreground points are drawn green with a plus, background points red with a minus,
             boxes green
    returns  (H, W, 3) uint8 RGB; lines and points are wider on larger photos

    Raises InputError if a mask is of another size, or for other pixels.
    """
    photo = isinstance(pixels, np.ndarray) and pixels.ndim == 3 and pixels.shape[2] == 3
    if not photo or pixels.dtype != np.uint8:
        raise InputError(f"pixels are {shown(pixels)}; give an (H, W, 3) uint8 RGB array")
    height, width = pixels.shape[:2]
    order = by_area(masks, (height, width))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    ranks = np.ascontiguousarray(paint(masks, (height, width), rank, order))
    colours = np.zeros((len(order) + 1, 3), np.float32)
    colours[1:] = distinct_colours(len(order))[order]
    edges = outlines(ranks, _thickness(height, width))
    out = np.empty_like(pixels, order="C")
    for start in range(0, height, _BAND):  # in bands: floats of a whole photo take much memory
        band = slice(start, start + _BAND)
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
    """Write the picture of `draw_overlay` as a PNG or JPEG file, by the file name's suffix.

    Raises InputError as draw_overlay does, OutputError for another suffix or if the file cannot be
    written.

        pixels = np.array(PIL.Image.open("photo.jpg").convert("RGB"))
        samfast.outputs.write_overlay("photo.overlay.png", pixels, results[0].best())
    """
    if not isinstance(path, str | os.PathLike):
        raise OutputError(f"{shown(path)} instead of a path to write to")
    kind = _FORMATS.get(Path(os.fsdecode(path)).suffix.lower())
    if kind is None:
        raise OutputError(f"{os.fspath(path)}: an overlay is PNG or JPEG; name it .png or .jpg")
    picture = Image.fromarray(draw_overlay(pixels, masks, prompts))
    options: dict[str, Any] = {"compress_level": 3} if kind == "PNG" else {"quality": 92}
    with atomic_open(path) as file:
        picture.save(file, kind, **options)


def outlines(ranks: NDArray[np.uint16], thickness: int) -> NDArray[np.bool_]:
    """(H, W) bool: pixels with a lower-ranked pixel within `thickness` pixels.

    ranks is (H, W), 0 for background, higher on top. Each border is drawn once, inside the upper
    region; the edge of the photo is no border.
    """
    lowest = ranks
    for step in range(thickness):  # a plus and a square in turn, which together is nearly round
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
        draw.rectangle(around, outline=_WHITE, width=3 * line)  # visible on green photos
        draw.rectangle(corners, outline=_FOREGROUND, width=line)
    radius = max(4, round(max(height, width) / 80))
    for x, y, label in _points(prompts):
        if label in (0, 1):
            marker = _marker(radius, bool(label))
            corner = (round(x) - marker.width // 2, round(y) - marker.height // 2)
            picture.paste(marker, corner, marker)
    return np.array(picture)


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


def _points(prompts: Prompts) -> Iterator[tuple[float, float, int]]:
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
