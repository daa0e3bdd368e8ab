"""The grid of overlapping tiles over a scene, and the cell of each, of which it is in charge.

Tiles have their places in the CRS, not in the file: a crop of a raster is cut along the same lines
as the raster, so that what lies inside is seen in the same windows and answered alike.

    one axis:   |---------- tile 0 ----------|
                                    |---------- tile 1 ----------|
                                    | overlap|
                |-------- cell 0 --------|-------- cell 1 -------|

The model is shown a tile in a window. It is as large as the tile, or as the model's input if that
is larger, with the tile in its middle. Along an axis where the scene fits into one window, there is
one, which begins with the scene, and one tile.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from samfast.errors import InputError
from samfast.types import Size

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1)."""


@dataclass(frozen=True)
class _Axis:
    """The tiles along x or y, in working pixels.

    base          where the first tile begins, counted from where the grid does
    start, stop   the scene
    windows       where each tile's window begins
    clicked       (low, high) of what each tile answers clicks in
    edges         of the cells, one more than there are tiles
    """

    base: int
    start: float
    stop: float
    windows: tuple[int, ...]
    clicked: tuple[tuple[int, int], ...]
    edges: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.windows)

    def cells(self, low: int, high: int) -> range:
        """Those that share pixels with low:high; the outer ones have what lies beyond them too."""
        first, last = (bisect_right(self.edges, each) - 1 for each in (low, high - 1))
        end = len(self) - 1
        return range(min(max(first, 0), end), min(max(last, 0), end) + 1)


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
    least    side of the windows, if tiles are smaller
    """

    size: Size
    tile: int
    overlap: int
    scale: tuple[float, float] = (1.0, 1.0)
    anchor: tuple[int, int] = (0, 0)
    least: int = 0

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

    @property
    def side(self) -> int:
        """Of the windows, in working pixels."""
        return max(self.tile, self.least)

    @cached_property
    def _axes(self) -> tuple[_Axis, _Axis]:
        height, width = self.size
        x, y = (
            self._axis(self.anchor[axis] / self.scale[axis], length / self.scale[axis])
            for axis, length in enumerate((width, height))
        )
        return x, y

    def _axis(self, start: float, length: float) -> _Axis:
        first = math.floor(start / self.stride)
        last = max(first, math.ceil((start + length - self.tile) / self.stride))
        begin = start - first * self.stride
        low, high = math.floor(begin), math.ceil(begin + length)
        windows: list[int] = []
        clicked: list[tuple[int, int]] = []
        edges = [low]
        for index in range(last - first + 1):
            corner = index * self.stride
            window = corner - (self.side - self.tile) // 2
            if high - low <= self.side:
                window = low
            tile = (corner, corner + self.tile) if self.side > self.tile else (window, high)
            tile = max(low, tile[0]), min(high, tile[1], window + self.side)
            if windows and windows[-1] == window:
                clicked[-1] = clicked[-1][0], tile[1]
                continue
            if windows:
                edges.append(corner + self.overlap // 2)
            windows.append(window)
            clicked.append(tile)
        return _Axis(
            first * self.stride,
            begin,
            begin + length,
            tuple(windows),
            tuple(clicked),
            (*edges, high),
        )

    @property
    def columns(self) -> int:
        """Tiles side by side."""
        return len(self._axes[0])

    @property
    def rows(self) -> int:
        """Tiles one below the other."""
        return len(self._axes[1])

    def __len__(self) -> int:
        return self.rows * self.columns

    @property
    def base(self) -> tuple[int, int]:
        """(x, y) of the first tile's corner, counted from the point where the grid begins."""
        return self._axes[0].base, self._axes[1].base

    @property
    def offset(self) -> tuple[float, float]:
        """(x, y) of the scene's upper left corner in working pixels."""
        return self._axes[0].start, self._axes[1].start

    @property
    def scene_box(self) -> tuple[float, float, float, float]:
        """The scene in working pixels."""
        x, y = self._axes
        return x.start, y.start, x.stop, y.stop

    def place(self, number: int) -> tuple[int, int]:
        """(row, column) of a tile; tiles are numbered along the rows."""
        return divmod(number, self.columns)

    def number(self, row: int, column: int) -> int | None:
        """The number of the tile there, or None outside the grid."""
        if 0 <= row < self.rows and 0 <= column < self.columns:
            return row * self.columns + column
        return None

    def window(self, number: int) -> Box:
        """What the model is shown of a tile, in working pixels."""
        row, column = self.place(number)
        x, y = self._axes[0].windows[column], self._axes[1].windows[row]
        return x, y, x + self.side, y + self.side

    def clicked(self, number: int) -> Box:
        """The part of its window, and of the scene, in which a tile answers clicks: all of it, if
        tiles are as large as windows, else the tile. Counted from the window's corner.
        """
        row, column = self.place(number)
        (x, y), (across, down) = self.window(number)[:2], self._axes
        (x0, x1), (y0, y1) = across.clicked[column], down.clicked[row]
        return x0 - x, y0 - y, x1 - x, y1 - y

    def cell(self, number: int) -> Box:
        """The part of the scene that is nearer to a tile's middle than to any other tile's.

        Cells do not overlap, and together they cover the scene.
        """
        row, column = self.place(number)
        (x0, x1), (y0, y1) = (
            axis.edges[index : index + 2]
            for axis, index in zip(self._axes, (column, row), strict=True)
        )
        return x0, y0, x1, y1

    def cells_of(self, box: Box) -> list[int]:
        """The numbers of the tiles whose cells share pixels with a box of working pixels."""
        x0, y0, x1, y1 = box
        columns = self._axes[0].cells(x0, x1)
        return [
            row * self.columns + column for row in self._axes[1].cells(y0, y1) for column in columns
        ]

    def earlier_neighbours(self, number: int) -> list[int]:
        """The tiles of smaller numbers beside a tile whose windows overlap its own."""
        row, column = self.place(number)
        places = [
            (row - 1, column - 1),
            (row - 1, column),
            (row - 1, column + 1),
            (row, column - 1),
        ]
        numbers = [self.number(*place) for place in places]
        window = self.window(number)
        return [each for each in numbers if each is not None and _meet(self.window(each), window)]


def _meet(a: Box, b: Box) -> bool:
    return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])
