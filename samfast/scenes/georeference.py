"""Where a scene lies on the Earth: its CRS and the affine transform from pixels to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Affine = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x = a * column + b * row + c, y = d * column + e * row + f."""

IDENTITY: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

METRES_PER_DEGREE = 111_320.0
"""Along a meridian, and along the equator; elsewhere a degree of longitude is shorter."""

HALF_SAFE = 0.25
"""Added before rounding down. Pixel corners of rasters lie on whole pixels of the CRS, or, where
the georeference means centres, half a pixel beside; both are far from the rounding's edge."""


@dataclass(frozen=True)
class Georeference:
    """The CRS and transform of a scene.

    transform        from pixels (column, row), of corners, to the CRS
    crs              WKT, or None where the file has none
    epsg             the CRS's EPSG code, or None
    metres_per_unit  of a projected CRS; None where it is geographic or missing
    geographic       coordinates are degrees of longitude and latitude
    """

    transform: Affine = IDENTITY
    crs: str | None = None
    epsg: int | None = None
    metres_per_unit: float | None = None
    geographic: bool = False

    @property
    def in_pixels(self) -> bool:
        """Whether there is no transform, so that the scene's coordinates are its pixels."""
        return self.transform == IDENTITY

    @property
    def is_rotated(self) -> bool:
        """Whether rows of pixels do not run along an axis of the CRS."""
        _, b, _, d, _, _ = self.transform
        return b != 0.0 or d != 0.0

    @property
    def square_metres_per_pixel(self) -> float | None:
        """The area of a pixel, or None where the CRS is not projected."""
        if self.metres_per_unit is None:
            return None
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d) * self.metres_per_unit**2

    def to_map(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels (N, 2) XY to coordinates of the CRS."""
        a, b, c, d, e, f = self.transform
        x, y = xy[:, 0], xy[:, 1]
        return np.stack([a * x + b * y + c, d * x + e * y + f], 1)

    def to_pixels(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates (N, 2) XY of the CRS to pixels."""
        a, b, c, d, e, f = self.transform
        scale = a * e - b * d
        x, y = xy[:, 0] - c, xy[:, 1] - f
        return np.stack([(e * x - b * y) / scale, (a * y - d * x) / scale], 1)

    def anchor(self) -> tuple[int, int]:
        """The scene's upper left pixel, (column, row), counted from the origin of the CRS.

        It differs between a raster and a crop of it by exactly the crop's offset, so that a grid of
        tiles counted from the CRS's origin is the same in both. (0, 0) without a transform.
        """
        if self.in_pixels:
            return 0, 0
        ((x, y),) = self.to_pixels(np.zeros((1, 2)))
        return math.floor(-x + HALF_SAFE), math.floor(-y + HALF_SAFE)

    def pixel_size(self, height: int, width: int) -> tuple[float, float]:
        """Width and height of the pixel in the middle of a scene: in metres where there is a CRS,
        else in units of the transform.
        """
        a, b, _, d, e, _ = self.transform
        if not self.geographic:
            unit = self.metres_per_unit or 1.0
            return math.hypot(a, d) * unit, math.hypot(b, e) * unit
        ((_, latitude),) = self.to_map(np.array([[width / 2, height / 2]]))
        east = METRES_PER_DEGREE * math.cos(math.radians(latitude))
        north = METRES_PER_DEGREE
        return math.hypot(a * east, d * north), math.hypot(b * east, e * north)
