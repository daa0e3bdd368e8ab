"""Pillow's bilinear resize as whole numbers, so that a device can do it, bit for bit.

Pillow goes over rows and then columns, each pixel of a pass a sum of neighbours times shares in 22
bits, rounded to a byte. Newer versions take the columns first where they shrink by much more, each
by a rule of its own.
"""

from __future__ import annotations

import platform
from functools import cache, lru_cache

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from samfast.types import Size

BITS = 22
"""Of a share; a sum of 255 times all shares of a pixel fits into 32."""

KNOWN = (13, 0)
"""The last version of Pillow whose order of passes is known here: 12.2 changed it without a word,
and so did 13.0."""

PROBES = (
    (40, 60, 64),
    (60, 17, 64),
    (200, 90, 64),
    (129, 97, 64),
    (149, 75, 32),
    (151, 75, 32),
    (300, 310, 32),
    (606, 6, 64),
    (500, 5, 64),
)
"""Sizes and sides that Pillow is compared at: to larger and smaller, near where the order of passes
changes."""


@lru_cache(maxsize=256)
def taps(length: int, new: int) -> NDArray[np.int32]:
    """(new, 1 + K): of each new pixel the first old one that it sees, and the shares of that one
    and of the next.

    What is no longer seen has the share 0; it may lie outside. In Pillow's order of operations, in
    float64.
    """
    pixel = np.arange(new)
    if length == new:
        return np.stack([pixel, np.full(new, 1 << BITS)], 1).astype(np.int32)
    scale = length / new
    support = max(scale, 1.0)
    centre = (pixel + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), length) - first
    weights = np.zeros((new, int(count.max())))
    total = np.zeros(new)
    for place in range(weights.shape[1]):
        distance = np.abs((place + first - centre + 0.5) * (1.0 / support))
        weights[:, place] = np.where((place < count) & (distance < 1.0), 1.0 - distance, 0.0)
        total += weights[:, place]  # one after the other, as sums in another order round otherwise
    shares = weights / np.where(total == 0.0, 1.0, total)[:, None]
    whole = (0.5 + shares * (1 << BITS)).astype(np.int64)
    return np.concatenate([first[:, None], whole], 1).astype(np.int32)


def columns_first(size: Size, new: Size) -> bool:
    """Whether the Pillow that is installed resizes columns before rows."""
    fewer_rows, fewer_columns = size[0] - new[0], size[1] - new[1]
    if fewer_rows <= 0 or _version() < (12, 2):
        return False
    return size[0] > 100 * size[1] if _version() < (13, 0) else fewer_rows > 2 * fewer_columns


def resample(pixels: NDArray[np.uint8], new: Size) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 -> (h, w, 3) uint8: the reference."""
    size = (pixels.shape[0], pixels.shape[1])
    axes = (0, 1) if columns_first(size, new) else (1, 0)
    for axis in axes:
        pixels = _along(pixels, axis, new[axis])
    return pixels


@cache
def as_pillow() -> bool:
    """Whether this is what the installed Pillow does: a version that is known, on a processor that
    rounds as here.
    """
    if _version() > KNOWN or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    rng = np.random.default_rng(0)
    for height, width, side in PROBES:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        scale = side / max(height, width)
        new = int(height * scale + 0.5), int(width * scale + 0.5)
        resized = Image.fromarray(pixels).resize((new[1], new[0]), Image.Resampling.BILINEAR)
        if not np.array_equal(resample(pixels, new), np.asarray(resized)):
            return False
    return True


def _along(pixels: NDArray[np.uint8], axis: int, new: int) -> NDArray[np.uint8]:
    table = taps(pixels.shape[axis], new)
    shape = [1, 1, 1]
    shape[axis] = new
    sums: NDArray[np.int32] = np.full(1, 1 << (BITS - 1), dtype=np.int32)
    for place in range(table.shape[1] - 1):
        seen = np.minimum(table[:, 0] + place, pixels.shape[axis] - 1)
        sums = sums + pixels.take(seen, axis).astype(np.int32) * table[:, 1 + place].reshape(shape)
    found: NDArray[np.uint8] = np.minimum(sums >> BITS, 255).astype(np.uint8)
    return found


def _version() -> tuple[int, int]:
    major, minor = PIL.__version__.split(".")[:2]
    return int(major), int(minor)
