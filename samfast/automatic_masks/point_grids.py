"""Grids of point prompts over an image and its crops."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=16)
def grid(points_per_side: int) -> NDArray[np.float64]:
    """(n * n, 2) XY in [0, 1], centres of n by n cells, row by row (original: `build_point_grid`).
    It is made once, and cannot be written to.
    """
    margin = 1 / (2 * points_per_side)
    places = np.linspace(margin, 1 - margin, points_per_side)
    x, y = np.meshgrid(places, places)
    points: NDArray[np.float64] = np.stack([x, y], axis=-1).reshape(-1, 2)
    points.flags.writeable = False
    return points


def sides(points_per_side: int, layers: int, downscale: int) -> list[int]:
    """Points per side for the whole image and each layer of crops."""
    return [int(points_per_side / downscale**layer) for layer in range(layers + 1)]


def grids(points_per_side: int, layers: int, downscale: int) -> list[NDArray[np.float64]]:
    """A grid for the image and each layer of crops (original: `build_all_layer_point_grids`)."""
    return [grid(side) for side in sides(points_per_side, layers, downscale)]
