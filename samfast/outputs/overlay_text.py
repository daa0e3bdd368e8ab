"""Numbers on the masks of an overlay, and a legend below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from samfast.outputs.prompt_markers import labelled_points, marker_radius
from samfast.types import Prompts

_SMALLEST = 9  # pixels, of a font that can be read
_PANEL = (24, 24, 27)
_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)


def draw_numbers(
    picture: Image.Image,
    ranks: NDArray[np.uint16],
    step: int,
    order: Sequence[int],
    prompts: Prompts | None = None,
) -> None:
    """Write on each region its number, order[i] on region i + 1, where there is most room.

    ranks    (h, w), the region of every step-th pixel in both directions, 0 for none
    prompts  whose points are left free

    A region without room for a number that can be read gets none.
    """
    draw = ImageDraw.Draw(picture)
    largest = max(_SMALLEST, round(max(picture.size) / 36))
    for region, (x, y, radius) in _centres(_without_points(ranks, step, prompts)):
        text = str(order[region - 1])
        # The corners of a text of this size lie on the circle; a digit is 0.6 as wide as high.
        size = int(2 * radius * step / np.hypot(0.6 * len(text), 0.8))
        if size >= _SMALLEST:
            font = ImageFont.load_default(min(size, largest))
            place = (x * step, y * step)
            stroke = max(1, min(size, largest) // 8)
            draw.text(place, text, _WHITE, font, "mm", stroke_width=stroke, stroke_fill=_BLACK)


def legend_of(records: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The legend for records of prompts of which several answer the same one, as `samfast segment
    --all-masks` makes them: each one's object and predicted IoU; None for other records.
    """
    if not all("point_labels" in record for record in records):
        return None
    asked = [(each["point_coords"], each["point_labels"], each["input_box"]) for each in records]
    objects = [len(list(same)) for _, same in groupby(asked)]
    if max(objects, default=1) == 1:
        return None
    numbers = np.repeat(np.arange(len(objects)), objects) + 1
    return [
        f"object {number}, predicted IoU {record['predicted_iou']:.2f}"
        for number, record in zip(numbers, records, strict=True)
    ]


def with_legend(
    picture: Image.Image, colours: NDArray[np.uint8], texts: Sequence[str]
) -> Image.Image:
    """The picture, and below it a line for each mask: its colour, its number and its text."""
    size = max(_SMALLEST + 3, round(max(picture.size) / 45))
    font = ImageFont.load_default(size)
    lines = [f"{number}  {text}" for number, text in enumerate(texts)]
    widest = max((font.getlength(line) for line in lines), default=0)
    row, column = round(1.6 * size), round(widest + 3.5 * size)
    columns = max(1, min(len(lines), picture.width // column))
    rows = -(-len(lines) // columns)
    height = picture.height + rows * row + (size if rows else 0)
    out = Image.new("RGB", (picture.width, height), _PANEL)
    out.paste(picture)
    draw = ImageDraw.Draw(out)
    for number, line in enumerate(lines):
        left = size + number // rows * column
        middle = picture.height + size // 2 + number % rows * row + row // 2
        square = (left, middle - size // 2, left + size, middle + size // 2)
        draw.rectangle(square, fill=tuple(colours[number].tolist()))
        draw.text((left + 1.6 * size, middle), line, _WHITE, font, "lm")
    return out


def _without_points(
    ranks: NDArray[np.uint16], step: int, prompts: Prompts | None
) -> NDArray[np.uint16]:
    """The regions without the discs that are drawn on the points."""
    ranks = ranks.copy()
    height, width = ranks.shape
    reach = marker_radius((height * step, width * step)) / step + 1
    for x, y, _ in labelled_points(prompts) if prompts is not None else ():
        left, right = np.clip([x / step - reach, x / step + reach + 1], 0, width).astype(int)
        top, bottom = np.clip([y / step - reach, y / step + reach + 1], 0, height).astype(int)
        ranks[top:bottom, left:right] = 0
    return ranks


def _centres(ranks: NDArray[np.uint16]) -> Iterator[tuple[int, tuple[int, int, float]]]:
    """Each region's number, and its pole of inaccessibility: the pixel (x, y) farthest from the
    outside, and how far it is.
    """
    from scipy import ndimage

    for region, box in enumerate(ndimage.find_objects(ranks), 1):
        if box is not None:
            inside = np.pad(ranks[box] == region, 1)
            distance = ndimage.distance_transform_edt(inside)
            y, x = np.unravel_index(distance.argmax(), distance.shape)
            left, top = box[1].start - 1, box[0].start - 1
            yield region, (int(left + x), int(top + y), float(distance[y, x]))
