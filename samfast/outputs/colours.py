"""Colours for masks: distinct from each other, from their neighbours and from the photo."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN_RATIO = (5**0.5 - 1) / 2
_FIRST_HUE = 0.70  # of a turn: blue
_LIGHTNESS = (0.68, 0.80, 0.58)
_CHROMA = 0.19
_PALETTE_SIZE = 24
_LIGHTNESS_WEIGHT = 0.3
_REUSE_PENALTY = 0.06
_NEAR = (1, 4, 16, 40)  # pixels

# OKLab to linear sRGB (Ottosson 2020, "A perceptual color space for image processing").
_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def distinct_colours(count: int) -> NDArray[np.uint8]:
    """(count, 3) uint8 RGB, always the same colours in the same order.

    Hues advance by the golden ratio, so that each falls into the widest remaining gap, in OKLCH,
    where equal steps look equal. Lightness alternates, so that close hues still differ.

        samfast.outputs.distinct_colours(12)  # for a chart of twelve objects
    """
    index = np.arange(count)
    hue = 2 * np.pi * ((_FIRST_HUE + index * _GOLDEN_RATIO) % 1)
    lightness = np.resize(_LIGHTNESS, count)
    chroma = np.full(count, _CHROMA, np.float64)
    for _ in range(40):  # some hues have no such strong colour in sRGB: fade those
        linear = _linear_rgb(lightness, chroma, hue)
        chroma[((linear < 0) | (linear > 1)).any(-1)] *= 0.97
    linear = np.clip(_linear_rgb(lightness, chroma, hue), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def contrasting_colours(
    pixels: NDArray[np.uint8], ranks: NDArray[np.uint16], count: int
) -> NDArray[np.uint8]:
    """(count, 3) uint8 RGB for the regions 1 to count of a photo; equal for equal arguments.

    pixels  (H, W, 3) uint8 RGB
    ranks   (H, W), the region of each pixel, 0 for none

    The first region chooses first. Each takes of `distinct_colours` the one that is farthest, in
    OKLab, from the photo below it and from its neighbours' colours, and avoids colours that others
    have.
    """
    palette = distinct_colours(_PALETTE_SIZE)
    lab = _oklab(palette)
    photo = _mean_oklab(pixels, ranks, count)
    neighbours = _neighbours(ranks, count)
    chosen = np.full(count + 1, -1)
    uses = np.zeros(len(palette))
    for region in range(1, count + 1):
        # A fill keeps the photo's lightness, so that hue and chroma have to tell them apart.
        contrast = np.linalg.norm((lab - photo[region]) * (_LIGHTNESS_WEIGHT, 1, 1), axis=-1)
        for other in neighbours[region]:
            if chosen[other] >= 0:
                distance = np.linalg.norm(lab - lab[chosen[other]], axis=-1)
                contrast = np.minimum(contrast, distance)
        chosen[region] = int((contrast - _REUSE_PENALTY * uses).argmax())
        uses[chosen[region]] += 1
    colours: NDArray[np.uint8] = palette[chosen[1:]]
    return colours


def _mean_oklab(
    pixels: NDArray[np.uint8], ranks: NDArray[np.uint16], count: int
) -> NDArray[np.float64]:
    """(count + 1, 3), the mean colour of the photo in each region; mid-grey where it has none."""
    flat = ranks.ravel()
    lab = _oklab(pixels.reshape(-1, 3))
    sizes = np.bincount(flat, minlength=count + 1)
    sums = [np.bincount(flat, channel, minlength=count + 1) for channel in lab.T]
    means = np.stack(sums, axis=-1) / np.maximum(sizes, 1)[:, None]
    means[sizes == 0] = (0.6, 0, 0)
    return means


def _neighbours(ranks: NDArray[np.uint16], count: int) -> list[list[int]]:
    """For each region, those that are near in its rows or columns, by samples at some distances."""
    pairs = []
    for step in _NEAR:
        for one, other in (
            (ranks[:, :-step], ranks[:, step:]),
            (ranks[:-step], ranks[step:]),
        ):
            differ = (one != other) & (one > 0) & (other > 0)
            pairs.append(np.stack([one[differ], other[differ]], axis=-1))
    found: list[list[int]] = [[] for _ in range(count + 1)]
    for one, other in np.unique(np.sort(np.concatenate(pairs), axis=-1), axis=0).tolist():
        found[one].append(other)
        found[other].append(one)
    return found


def _oklab(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 3) RGB as OKLab."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lms = np.maximum(linear @ np.linalg.inv(_TO_RGB.T), 0)
    lab: NDArray[np.float64] = np.cbrt(lms) @ np.linalg.inv(_TO_LMS.T)
    return lab


def _linear_rgb(
    lightness: NDArray[np.floating], chroma: NDArray[np.floating], hue: NDArray[np.floating]
) -> NDArray[np.float64]:
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    linear: NDArray[np.float64] = (lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T
    return linear
