"""Windows of a scene -> RGB images for the model, with what is no data in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samfast.scenes.band_scaling import BandScaling
from samfast.scenes.source import Source
from samfast.types import PIXEL_MEAN

FILL = tuple(round(value) for value in PIXEL_MEAN)
"""The colour of what is no data. The model's input is nearly zero there, as in SAM's own padding.
"""


MAX_SAMPLES = 4
"""Pixels a side that are averaged for a working pixel: a scene without overviews is read with gaps,
so that a window takes no more memory however coarse it is."""


@dataclass(frozen=True, eq=False)
class TileImage:
    """A window of a scene as the model is shown it.

    rgb    (S, S, 3) uint8
    valid  (S, S) bool: False where there is no data, outside the scene too
    """

    rgb: NDArray[np.uint8]
    valid: NDArray[np.bool_]


def read_window(
    source: Source,
    scaling: BandScaling,
    corner: tuple[float, float],
    side: int,
    scale: tuple[float, float],
) -> TileImage:
    """A square window of a scene, which may reach beyond it.

    corner  (x, y) of its upper left corner in scene pixels
    side    in working pixels
    scale   (x, y): scene pixels per working pixel; above 1 the pixels of the nearest finer overview
            are averaged, at most MAX_SAMPLES a side of a working pixel; below 1 they are
            interpolated

    Raises SceneReadError.
    """
    height, width = source.info.size
    rgb = np.empty((side, side, 3), dtype=np.uint8)
    rgb[:] = FILL
    valid = np.zeros((side, side), dtype=np.bool_)
    x = _span(corner[0], side, scale[0], width)
    y = _span(corner[1], side, scale[1], height)
    if x is None or y is None:
        return TileImage(rgb, valid)
    window = (x.first, y.first, x.last, y.last)
    step = _step(source, min(scale))
    if step == 1.0:
        pixels, shape = source.read(scaling.bands, window), None
    else:
        shape = (math.ceil((y.last - y.first) / step), math.ceil((x.last - x.first) / step))
        pixels = source.read(scaling.bands, window, shape)
    colours, present = scaling.to_rgb(pixels), pixels.valid
    if scale != (1.0, 1.0):
        have = (shape[0] / (y.last - y.first), shape[1] / (x.last - x.first)) if shape else (1, 1)
        box = (
            (x.low - x.first) * have[1],
            (y.low - y.first) * have[0],
            (x.high - x.first) * have[1],
            (y.high - y.first) * have[0],
        )
        size = (x.stop - x.start, y.stop - y.start)
        colours[~present] = FILL
        colours = np.asarray(
            Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR, box=box)
        )
        present = np.asarray(
            Image.fromarray(present).resize(size, Image.Resampling.NEAREST, box=box)
        )
    part = (slice(y.start, y.stop), slice(x.start, x.stop))
    rgb[part][present] = colours[present]
    valid[part] = present
    return TileImage(rgb, valid)


def _step(source: Source, scale: float) -> float:
    """How many times smaller the window is read."""
    level = max(each for each in source.info.levels if each <= max(1.0, scale) * 1.001)
    return max(level, float(math.floor(scale / MAX_SAMPLES)))


@dataclass(frozen=True)
class _Span:
    """One axis of a window: the scene pixels first:last are read, of which low:high, in fractions
    of pixels, become the working pixels start:stop.
    """

    low: float
    high: float
    first: int
    last: int
    start: int
    stop: int


def _span(corner: float, side: int, scale: float, length: int) -> _Span | None:
    """None: the window and the scene share no pixel."""
    low, high = max(0.0, corner), min(float(length), corner + side * scale)
    start = max(0, round((low - corner) / scale))
    stop = min(side, round((high - corner) / scale))
    if high <= low or stop <= start:
        return None
    return _Span(low, high, math.floor(low), math.ceil(high), start, stop)
