"""Distinct colours for any number of masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN_RATIO = (5**0.5 - 1) / 2
_FIRST_HUE = 0.70  # of a turn: blue
_LIGHTNESS = (0.68, 0.80, 0.58)
_CHROMA = 0.19

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

        samfast.outputs.distinct_colours(2)[0]  # the colour of the first mask in an overlay
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


def _linear_rgb(
    lightness: NDArray[np.floating], chroma: NDArray[np.floating], hue: NDArray[np.floating]
) -> NDArray[np.float64]:
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    linear: NDArray[np.float64] = (lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T
    return linear
