"""Pillow's bilinear resize in integers, which any device computes bit for bit.

Pillow resizes rows and then columns: each pixel of a pass is a sum of neighbours times weights of
22 bits, rounded to a byte. Newer versions resize columns first where these shrink by much more, and
the rule differs between versions.
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
"""Of a weight; 255 times the sum of a pixel's weights fits into 32."""

LAST_KNOWN_PILLOW = (13, 0)
"""The last version whose order of passes is known: 12.2 and 13.0 changed it unannounced."""

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
"""Heights, widths and sides at which Pillow is compared, near changes of the order of passes."""


@lru_cache(maxsize=256)
def taps(length: int, new: int) -> NDArray[np.int32]:
    """(new, 1 + K): for each new pixel, its first old pixel and the weights of K from there.

    Trailing weights of 0 may lie outside. Pillow's operations in their order, in float64.
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
        total += weights[:, place]  # in this order: another one rounds differently
    weights = weights / np.where(total == 0.0, 1.0, total)[:, None]
    integers = (0.5 + weights * (1 << BITS)).astype(np.int64)
    return np.concatenate([first[:, None], integers], 1).astype(np.int32)


def columns_first(size: Size, new: Size) -> bool:
    """Whether the installed Pillow resizes columns before rows."""
    fewer_rows, fewer_columns = size[0] - new[0], size[1] - new[1]
    if fewer_rows <= 0 or _version() < (12, 2):
        return False
    return size[0] > 100 * size[1] if _version() < (13, 0) else fewer_rows > 2 * fewer_columns


def resample(pixels: NDArray[np.uint8], new: Size) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 -> (h, w, 3) uint8; the reference of the kernels."""
    size = (pixels.shape[0], pixels.shape[1])
    axes = (0, 1) if columns_first(size, new) else (1, 0)
    for axis in axes:
        pixels = _along(pixels, axis, new[axis])
    return pixels


@cache
def as_pillow() -> bool:
    """Whether `resample` equals the installed Pillow: a known version, on x86-64, as measured."""
    if _version() > LAST_KNOWN_PILLOW or platform.machine().lower() not in ("x86_64", "amd64"):
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
        old = np.minimum(table[:, 0] + place, pixels.shape[axis] - 1)
        sums = sums + pixels.take(old, axis).astype(np.int32) * table[:, 1 + place].reshape(shape)
    resized: NDArray[np.uint8] = np.minimum(sums >> BITS, 255).astype(np.uint8)
    return resized


def _version() -> tuple[int, int]:
    major, minor = PIL.__version__.split(".")[:2]
    return int(major), int(minor)
