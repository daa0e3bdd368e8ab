"""A scene -> its objects: read tiles, segment them, keep their masks, join them."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfast.automatic_masks.options import SegmentOptions, check_names
from samfast.automatic_masks.point_grids import grids
from samfast.errors import ImageWarning, InputError, shown
from samfast.images import LoadedImage
from samfast.progress import reporting
from samfast.scenes.band_scaling import BandScaling, ValueRange, choose_scaling
from samfast.scenes.join_tiles import join_tiles
from samfast.scenes.open_scene import SceneLike, open_scene
from samfast.scenes.scene_engine import SceneEngine
from samfast.scenes.scene_objects import SceneObjects
from samfast.scenes.source import SceneReadError, Source
from samfast.scenes.tile_grid import Box, TileGrid
from samfast.scenes.tile_masks import masks_of_tile
from samfast.scenes.tile_reader import read_window
from samfast.scenes.tile_store import TileStore
from samfast.types import Progress

TILE, OVERLAP = 1024, 128
"""The default tile is the model's input, so that pixels are shown as they are."""

MAX_FAILURES = 5
"""After so many tiles in a row that cannot be read, no more are tried: the server or disk is gone.
"""

BOX_NMS = 0.7
"""box_nms_thresh, unless the options say it."""

POINTS_PER_SIDE = 32
"""Clicks along the side of the model's input, unless the options say how many."""


@dataclass(frozen=True)
class SceneOptions:
    """How a scene is cut and shown.

    tile         side of the tiles, in working pixels. Larger than the model's input they are
                 reduced to it, smaller they are shown with what lies around them
    overlap      of neighbouring tiles, at most half of the tile. Objects that are larger than it
                 are joined of their parts
    resolution   metres per working pixel where there is a CRS, else units of the transform or scene
                 pixels; None: the scene's own pixels
    bands        one or three bands to show, counted from 1
    percentiles  black and white as percentiles; None: (2, 98), and 8-bit values as they are
    value_range  black and white as values, for all bands or a pair for each
    nodata       a value that means no data, besides what the file says
    origin       (x, y) of the scene's upper left pixel in a larger one, for scenes without
                 transform: a crop with its origin is cut into the same tiles as the whole
    complete_cut  whether objects that a border cuts are answered again in windows around them
    """

    tile: int = TILE
    overlap: int = OVERLAP
    resolution: float | None = None
    bands: tuple[int, ...] | None = None
    percentiles: tuple[float, float] | None = None
    value_range: ValueRange | None = None
    nodata: float | None = None
    origin: tuple[int, int] = (0, 0)
    complete_cut: bool = False

    def __post_init__(self) -> None:
        for name in ("tile", "overlap"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise InputError(f"{name}={shown(value)}; give a whole number of pixels")
        resolution = self.resolution
        if resolution is not None and not (
            isinstance(resolution, int | float) and 0 < resolution < float("inf")
        ):
            raise InputError(f"resolution={shown(resolution)}; give a positive number")

    def grid(self, source: Source, least: int) -> TileGrid:
        """The tiles of a scene, in windows of at least that many working pixels a side."""
        info = source.info
        x, y = info.georeference.anchor()
        scale = (1.0, 1.0)
        if self.resolution is not None:
            width, height = info.georeference.pixel_size(*info.size)
            scale = (self.resolution / width, self.resolution / height)
            if all(abs(each - 1.0) < 1e-4 for each in scale):
                scale = (1.0, 1.0)
        anchor = (x + self.origin[0], y + self.origin[1])
        return TileGrid(info.size, int(self.tile), int(self.overlap), scale, anchor, least)

    def scaling(self, source: Source) -> BandScaling:
        """How its values are shown."""
        return choose_scaling(source, self.bands, self.percentiles, self.value_range)


@dataclass
class TileReading:
    """The tiles of a scene as images, in order, and what became of them.

    left      how many are still to be read
    in_a_row  how many could not be read since the last that could
    awaiting  tiles that were handed to the model and are not answered: number and valid pixels
    empty     tiles in which no data is
    failures  a line for each tile that cannot be read
    """

    source: Source
    grid: TileGrid
    scaling: BandScaling
    left: int
    in_a_row: int = 0
    awaiting: deque[tuple[int, NDArray[np.bool_]]] = field(default_factory=deque)
    empty: deque[int] = field(default_factory=deque)
    failures: list[str] = field(default_factory=list)

    def images(self, numbers: Sequence[int]) -> Iterator[LoadedImage]:
        """These tiles as the model is shown them, those without data left out."""
        for number in numbers:
            if self.in_a_row == MAX_FAILURES:
                return
            self.left -= 1
            try:
                image = self._read(number)
                self.in_a_row = 0
            except SceneReadError as error:
                self.failures.append(str(error))
                self.in_a_row += 1
                if self.in_a_row == MAX_FAILURES:
                    self.failures.append(
                        f"{self.source.info.name}: {MAX_FAILURES} tiles in a row could not be "
                        f"read; the {self.left} after them were not tried"
                    )
                continue
            if image is None:
                self.empty.append(number)
            else:
                yield image

    def _read(self, number: int) -> LoadedImage | None:
        x, y, _, _ = self.grid.window(number)
        (left, top), (sx, sy) = self.grid.offset, self.grid.scale
        corner = ((x - left) * sx, (y - top) * sy)
        tile = read_window(self.source, self.scaling, corner, self.grid.side, self.grid.scale)
        if not tile.valid.any():
            return None
        self.awaiting.append((number, tile.valid))
        return LoadedImage(tile.rgb, f"{self.source.info.name}: tile {number}")


def segment_scene(
    engine: SceneEngine,
    scene: SceneLike,
    options: SceneOptions,
    automatic: SegmentOptions,
    workspace: str | os.PathLike[str] | None = None,
    progress: Progress | bool = False,
) -> SceneObjects:
    """Everything in a scene (`SamFast.segment_large`)."""
    check_names(automatic)
    source = open_scene(scene, options.nodata)
    with closing(source):
        grid, scaling = options.grid(source, engine.image_size), options.scaling(source)
        _check_options(automatic, grid)
        store, folder = open_store(workspace, _job(source, grid, scaling, engine, automatic))
        with closed_on_error(store, folder):
            done = store.done()
            pending = [tile for tile in range(len(grid)) if tile not in done]
            reading = TileReading(source, grid, scaling, len(pending))
            with reporting(progress, len(grid), "tile") as advance:
                advance(len(done))
                for clicked, tiles in _by_clicks(pending, grid).items():
                    chosen = _segment_options(automatic, clicked, grid.side)
                    _segment_tiles(engine, reading, tiles, store, chosen, advance)
            store.replace_objects(join_tiles(store, grid))
            if options.complete_cut:
                # predict_scene uses this file, too.
                from samfast.scenes.cut_objects import complete_cut
                from samfast.scenes.predict_scene import PromptWindows

                windows = PromptWindows(engine, source, grid, scaling, None)
                complete_cut(windows, store, grid, automatic.get("box_nms_thresh", BOX_NMS))
                reading.failures += windows.failures
    warn_of_failures(reading.failures)
    notes = (*source.info.notes, *scaling.notes)
    return SceneObjects(source.info, grid, notes, tuple(reading.failures), store, folder)


@contextmanager
def closed_on_error(store: TileStore, folder: TemporaryDirectory[str] | None) -> Iterator[None]:
    """Close the store, and remove its temporary folder, if the block ends by an exception."""
    try:
        yield
    except BaseException:
        store.close()
        if folder is not None:
            folder.cleanup()
        raise


def warn_of_failures(failures: Sequence[str]) -> None:
    """An ImageWarning for each, which names the line that called the method of `SamFast`."""
    for failure in failures:
        warnings.warn(failure, ImageWarning, stacklevel=4)


def _segment_tiles(
    engine: SceneEngine,
    reading: TileReading,
    tiles: Sequence[int],
    store: TileStore,
    options: dict[str, Any],
    advance: Callable[[int], object],
) -> None:
    """Answer these tiles, and keep the answers as they come."""

    def keep_empty() -> None:
        while reading.empty:
            store.add_tile(reading.empty.popleft(), [])
            advance(1)

    with closing(engine.segment_each(reading.images(tiles), **options)) as answers:
        for records in answers:
            number, valid = reading.awaiting.popleft()
            x, y, _, _ = reading.grid.window(number)
            masks = masks_of_tile(number, (x, y), reading.grid.side, valid, records)
            store.add_tile(number, masks)
            advance(1)
            keep_empty()
    keep_empty()


def _check_options(automatic: SegmentOptions, grid: TileGrid) -> None:
    if automatic.get("output_mode", "coco_rle") != "coco_rle":
        raise InputError("output_mode is coco_rle for scenes; leave it out")
    if automatic.get("crop_n_layers") and grid.tile < grid.side:
        raise InputError(f"crop_n_layers needs tiles of at least {grid.side}, not {grid.tile}")


def _by_clicks(tiles: Sequence[int], grid: TileGrid) -> dict[Box, list[int]]:
    """Tiles by the part of their windows in which they answer clicks: alike but at the borders."""
    groups: defaultdict[Box, list[int]] = defaultdict(list)
    for tile in tiles:
        groups[grid.clicked(tile)].append(tile)
    return groups


def _segment_options(automatic: SegmentOptions, clicked: Box, side: int) -> dict[str, Any]:
    """The options of a window whose clicks lie in a part of it."""
    if clicked == (0, 0, side, side) or automatic.get("crop_n_layers"):
        return {**automatic}
    given = automatic.get("point_grids")
    if given is not None:
        points = np.asarray(given[0], dtype=np.float64)
    else:
        (points,) = grids(automatic.get("points_per_side") or POINTS_PER_SIDE, 0, 1)
    low, high = np.array(clicked[:2]) / side, np.array(clicked[2:]) / side
    inside = points[((points >= low) & (points < high)).all(1)]
    if not len(inside):
        inside = (low + high)[None] / 2  # the part is smaller than the grid's step
    return {**automatic, "points_per_side": None, "point_grids": [inside]}


def open_store(
    workspace: str | os.PathLike[str] | None, job: dict[str, Any]
) -> tuple[TileStore, TemporaryDirectory[str] | None]:
    """The store of a job in its file, or in a temporary folder, which is returned with it."""
    if workspace is not None:
        return TileStore(Path(workspace), job), None
    folder = TemporaryDirectory(prefix="samfast-")
    return TileStore(Path(folder.name) / "tiles.sqlite", job), folder


def _job(
    source: Source,
    grid: TileGrid,
    scaling: BandScaling,
    engine: SceneEngine,
    automatic: SegmentOptions,
) -> dict[str, Any]:
    """What tiles must have in common to be joined."""
    options = {
        name: value if not isinstance(value, list) else _digest(value)
        for name, value in sorted(automatic.items())
        if name not in ("points_per_batch", "max_memory")
    }
    return {
        "scene": f"{source.info.name} {source.info.identity}",
        "tile": grid.tile,
        "overlap": grid.overlap,
        "window": grid.side,
        "resolution": list(grid.scale),
        "origin": list(grid.anchor),
        "bands": [band + 1 for band in scaling.bands],
        "values": None if scaling.ranges is None else [list(pair) for pair in scaling.ranges],
        "model": engine.fingerprint,
        "options": options,
    }


def _digest(arrays: list[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
    return digest.hexdigest()[:16]
