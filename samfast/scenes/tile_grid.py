"""The grid of overlapping tiles over a scene, and the cell of each tile, of which it is in charge.

Tiles have their places in the CRS, not in the file: a crop of a raster is cut along the same lines
as the raster, so that what lies inside is seen in the same tiles and answered alike.

    one axis:   |---------- tile 0 ----------|
                                    |---------- tile 1 ----------|
                                    | overlap|
                |-------- cell 0 --------|-------- cell 1 -------|
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from samfast.errors import InputError
from samfast.types import Size

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1)."""


@dataclass(frozen=True)
class TileGrid:
    """Tiles over a scene of `size` pixels.

    Working pixels are those of the tiles; they are counted from the upper left corner of the first
    tile, which may lie outside the scene.

    size     (H, W) of the scene in its own pixels
    tile     side of a tile in working pixels
    overlap  of neighbouring tiles, at most half of the tile
    scale    (x, y): scene pixels per working pixel
    anchor   (x, y) of the scene's upper left pixel, counted in scene pixels from the point where
             the grid begins
    """

    size: Size
    tile: int
    overlap: int
    scale: tuple[float, float] = (1.0, 1.0)
    anchor: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.tile < 64:
            raise InputError(f"tile={self.tile}; a tile has at least 64 pixels a side")
        if not 0 <= self.overlap <= self.tile // 2:
            raise InputError(
                f"overlap={self.overlap} of tiles of {self.tile} pixels; it must be from 0 to "
                f"{self.tile // 2}, half of the tile"
            )

    @property
    def stride(self) -> int:
        """Working pixels from one tile to the next."""
        return self.tile - self.overlap

    @cached_property
    def _axes(self) -> tuple[tuple[float, int], tuple[float, int]]:
        """For x and y: where the scene begins in working pixels, and the number of tiles."""
        height, width = self.size
        x, y = (
            self._axis(self.anchor[axis] / self.scale[axis], length / self.scale[axis])
            for axis, length in enumerate((width, height))
        )
        return x, y

    def _axis(self, start: float, length: float) -> tuple[float, int]:
        first = math.floor(start / self.stride)
        last = max(first, math.ceil((start + length - self.tile) / self.stride))
        return start - first * self.stride, last - first + 1

    @property
    def columns(self) -> int:
        """Tiles side by side."""
        return self._axes[0][1]

    @property
    def rows(self) -> int:
        """Tiles one below the other."""
        return self._axes[1][1]

    def __len__(self) -> int:
        return self.rows * self.columns

    @property
    def offset(self) -> tuple[float, float]:
        """(x, y) of the scene's upper left corner in working pixels."""
        return self._axes[0][0], self._axes[1][0]

    @property
    def scene_box(self) -> tuple[float, float, float, float]:
        """The scene in working pixels."""
        (x, _), (y, _) = self._axes
        height, width = self.size
        return x, y, x + width / self.scale[0], y + height / self.scale[1]

    def place(self, number: int) -> tuple[int, int]:
        """(row, column) of a tile; tiles are numbered along the rows."""
        return divmod(number, self.columns)

    def number(self, row: int, column: int) -> int | None:
        """The number of the tile there, or None outside the grid."""
        if 0 <= row < self.rows and 0 <= column < self.columns:
            return row * self.columns + column
        return None

    def tile_box(self, number: int) -> Box:
        """A tile in working pixels."""
        row, column = self.place(number)
        x, y = column * self.stride, row * self.stride
        return x, y, x + self.tile, y + self.tile

    def cell(self, number: int) -> Box:
        """The part of a tile that is nearer to its middle than to any other tile's.

        Cells do not overlap, and together they cover the scene.
        """
        row, column = self.place(number)
        x0, x1 = self._cell(column, self.columns)
        y0, y1 = self._cell(row, self.rows)
        return x0, y0, x1, y1

    def _cell(self, index: int, count: int) -> tuple[int, int]:
        start, half = index * self.stride, self.overlap // 2
        low = start if index == 0 else start + half
        high = start + self.tile if index == count - 1 else start + self.stride + half
        return low, high

    def cells_of(self, box: Box) -> list[int]:
        """The numbers of the tiles whose cells share pixels with a box of working pixels."""
        x0, y0, x1, y1 = box
        columns = self._cells_of(x0, x1, self.columns)
        return [
            row * self.columns + column
            for row in self._cells_of(y0, y1, self.rows)
            for column in columns
        ]

    def _cells_of(self, low: int, high: int, count: int) -> range:
        half = self.overlap // 2
        first, last = (low - half) // self.stride, (high - 1 - half) // self.stride
        return range(min(max(first, 0), count - 1), min(max(last, 0), count - 1) + 1)

    def earlier_neighbours(self, number: int) -> list[int]:
        """The tiles of smaller numbers that overlap a tile."""
        row, column = self.place(number)
        places = [
            (row - 1, column - 1),
            (row - 1, column),
            (row - 1, column + 1),
            (row, column - 1),
        ]
        numbers = [self.number(*place) for place in places]
        return [each for each in numbers if each is not None] if self.overlap else []
