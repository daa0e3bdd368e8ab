"""The photo with its masks, coloured, outlined and numbered, and the prompts drawn on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samfast.atomic_files import atomic_open
from samfast.coco_rle import MaskSequence
from samfast.errors import InputError, OutputError, shown
from samfast.outputs.colours import contrasting_colours
from samfast.outputs.labels import by_area, paint
from samfast.outputs.overlay_text import draw_numbers, with_legend
from samfast.outputs.prompt_markers import draw_prompts
from samfast.types import Prompts, Size

_FILL = 0.5
_GREYED = 0.8
_LIGHTENED = 0.4
_SHADE = 0.35
_GROUND = 96
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BAND = 128  # rows
_SAMPLED_SIDE = 640  # pixels
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def draw_overlay(
    pixels: NDArray[np.uint8],
    masks: MaskSequence,
    prompts: Prompts | None = None,
    legend: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """The photo with its masks, coloured, outlined and numbered, and the prompts drawn on it.

    pixels   (H, W, 3) uint8 RGB
    masks    N masks of (H, W): arrays, tensors or COCO RLE. Where masks overlap, the smaller is on
             top. Colours differ from the photo below and from those of neighbours. Of several
             masks, each bears its number, from 0 on, where it is wide enough for one
    prompts  foreground points are drawn green with a plus, background points red with a minus,
             boxes green
    legend   a line of text for each mask, to be written below the photo after its number
    returns  (H, W, 3) uint8 RGB, or higher with a legend; lines, points and numbers are larger on
             larger photos

    Raises InputError if a mask is of another size, or for other pixels or a legend of another
    length.
    """
    photo = isinstance(pixels, np.ndarray) and pixels.ndim == 3 and pixels.shape[2] == 3
    if not photo or pixels.dtype != np.uint8:
        raise InputError(f"pixels are {shown(pixels)}; give an (H, W, 3) uint8 RGB array")
    height, width = pixels.shape[:2]
    ranks, order = _regions(masks, (height, width))
    if legend is not None and len(legend) != len(order):
        raise InputError(f"a legend of {len(legend)} lines for {len(order)} masks; give one each")
    step = max(1, round(max(height, width) / _SAMPLED_SIDE))
    sampled = ranks[::step, ::step]
    colours = contrasting_colours(pixels[::step, ::step], sampled, len(order))
    picture = Image.fromarray(_coloured(pixels, ranks, colours))
    if len(order) > 1:
        draw_numbers(picture, sampled, step, order, prompts)
    if prompts is not None:
        draw_prompts(picture, prompts, max(1, round(max(height, width) / 450)))
    if legend is not None:
        picture = with_legend(picture, colours[np.argsort(order)], legend)
    return np.array(picture)


def draw_masks(masks: MaskSequence, size: Size, side: int) -> Image.Image:
    """The masks of an image (H, W) as in an overlay, on a plain ground; at most `side` high and
    wide.
    """
    ranks, order = _regions(masks, size)
    step = -(-max(size) // side)
    ranks = np.ascontiguousarray(ranks[::step, ::step])
    ground = np.full((*ranks.shape, 3), _GROUND, np.uint8)
    picture = Image.fromarray(
        _coloured(ground, ranks, contrasting_colours(ground, ranks, len(order)))
    )
    if len(order) > 1:
        draw_numbers(picture, ranks, 1, order)
    return picture


def _regions(masks: MaskSequence, size: Size) -> tuple[NDArray[np.uint16], list[int]]:
    """(H, W), the region on top at each pixel, 0 for none; and the index of each region's mask,
    that of region 1 first.
    """
    order = by_area(masks, size)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return np.ascontiguousarray(paint(masks, size, rank, order)), order


def write_overlay(
    path: str | os.PathLike[str],
    pixels: NDArray[np.uint8],
    masks: MaskSequence,
    prompts: Prompts | None = None,
    legend: Sequence[str] | None = None,
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
    picture = Image.fromarray(draw_overlay(pixels, masks, prompts, legend))
    options: dict[str, Any] = {"compress_level": 3} if kind == "PNG" else {"quality": 92}
    with atomic_open(path) as file:
        picture.save(file, kind, **options)


def _coloured(
    pixels: NDArray[np.uint8], ranks: NDArray[np.uint16], colours: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The photo with filled and outlined regions; region i has colour i - 1.

    A fill greys the photo before it mixes it with its colour: the colour of the photo would make
    the fill's another one. An outline is a light line and a shade around it, so that it is seen on
    light and on dark photos.
    """
    thickness = max(1, round(max(ranks.shape) / 300))
    lines, shades = outlines(ranks, thickness)
    fills = np.zeros((len(colours) + 1, 3), np.float32)
    fills[1:] = colours
    light = fills + _LIGHTENED * (255 - fills)
    out = np.empty_like(pixels, order="C")
    for start in range(0, len(pixels), _BAND):  # in bands: floats of a whole photo take much memory
        band = slice(start, start + _BAND)
        drawn, inside = pixels[band].astype(np.float32), ranks[band] > 0
        photo = drawn[inside]
        grey = photo + _GREYED * ((photo @ _LUMA)[:, None] - photo)
        drawn[inside] = grey + _FILL * (fills[ranks[band][inside]] - grey)
        drawn[shades[band]] *= 1 - _SHADE
        drawn[lines[band]] = light[ranks[band][lines[band]]]
        out[band] = np.round(drawn)
    return out


def outlines(
    ranks: NDArray[np.uint16], thickness: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(H, W) bool, twice: pixels with a lower-ranked pixel within `thickness` pixels, and within
    one more.

    ranks is (H, W), 0 for background, higher on top. Each border is drawn once, inside the upper
    region; the edge of the photo is no border.
    """
    lowest = ranks
    for step in range(thickness + 1):  # a plus and a square in turn, which together is nearly round
        if step == thickness:
            lines = lowest < ranks
        source = lowest
        lowest = source.copy()
        np.minimum(lowest[1:], source[:-1], out=lowest[1:])
        np.minimum(lowest[:-1], source[1:], out=lowest[:-1])
        if step % 2:
            source = lowest.copy()
        np.minimum(lowest[:, 1:], source[:, :-1], out=lowest[:, 1:])
        np.minimum(lowest[:, :-1], source[:, 1:], out=lowest[:, :-1])
    return lines, lowest < ranks
