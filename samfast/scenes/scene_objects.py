"""The objects of a scene: records, polygons and pixels, one object or one cell at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.masks import mask_runs
from samfast.masks.coco_text import strings
from samfast.outputs.polygons import mask_to_polygons
from samfast.scenes.georeference import Georeference
from samfast.scenes.source import SceneInfo
from samfast.scenes.tile_grid import Box, TileGrid
from samfast.scenes.tile_store import Piece, SceneObject, TileStore
from samfast.types import Size

if TYPE_CHECKING:
    from shapely import MultiPolygon


MAX_DENSE_PIXELS = 4096 * 4096
"""Largest box of an object whose outline is drawn from one mask. That of a larger one is the union
of its outlines in each cell, which takes longer and no more memory.
"""


@dataclass(frozen=True, eq=False)
class SceneObjects:
    """What `SamFast.segment_large` found; the objects lie on disk and are read as they are used.

    info      the scene
    grid      its tiles
    notes     what was chosen on the way (bands, values, coordinates), one sentence each
    failures  tiles that could not be read, one line each; what lies in them is missing
    store     the file of tiles and objects
    folder    its temporary folder, removed with this object; None: the file is the caller's

    Iterating gives a record for each object, in pixels of the scene (`record`).

    >>> objects = sam.segment_large("scene.tif")
    >>> objects.write_geopackage("scene.gpkg")
    """

    info: SceneInfo
    grid: TileGrid
    notes: tuple[str, ...]
    failures: tuple[str, ...]
    store: TileStore
    folder: TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return self.store.object_count()

    def __repr__(self) -> str:
        height, width = self.info.size
        return f"SceneObjects({len(self)} objects of {self.info.name}, {height} x {width} pixels)"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.record, self.store.objects())

    def __enter__(self) -> SceneObjects:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file of objects, and remove it if it is a temporary one."""
        self.store.close()
        if self.folder is not None:
            self.folder.cleanup()

    @property
    def georeference(self) -> Georeference:
        """Where the scene lies."""
        return self.info.georeference

    def record(self, each: SceneObject) -> dict[str, Any]:
        """An object in pixels of the scene.

        Keys as of `SamFast.segment`: segmentation (COCO RLE of the whole scene), area, bbox (XYWH
        around all pixels), predicted_iou, point_coords, stability_score; and id, tiles (of how many
        tiles' masks it was joined), cut (it ends at a tile's border with nothing that continues
        it).
        """
        pieces = [self.pixels(piece) for piece in self.store.pieces_of(each.id)]
        segmentation, area = scene_rle(pieces, self.info.size)
        x0, y0, x1, y1 = _hull([box for box, _ in pieces])
        return {
            "id": each.id,
            "segmentation": segmentation,
            "area": area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "predicted_iou": each.predicted_iou,
            "point_coords": [self._scene_xy(each.point)],
            "stability_score": each.stability,
            "tiles": each.tiles,
            "cut": each.cut,
        }

    def pixels(self, piece: Piece) -> tuple[Box, NDArray[np.bool_]]:
        """A part of an object in scene pixels: its box in the scene, and the pixels in the box."""
        x0, y0, x1, y1 = piece.box
        mask = _mask_of(piece)
        height, width = self.info.size
        columns = scene_range(x0, x1, self.grid.offset[0], self.grid.scale[0], width)
        rows = scene_range(y0, y1, self.grid.offset[1], self.grid.scale[1], height)
        if self.grid.scale == (1.0, 1.0):
            left, top = x0 - round(self.grid.offset[0]), y0 - round(self.grid.offset[1])
            mask = mask[rows.start - top : rows.stop - top, columns.start - left :]
            mask = mask[:, : len(columns)]
        else:
            x = _working(columns, self.grid.offset[0], self.grid.scale[0]) - x0
            y = _working(rows, self.grid.offset[1], self.grid.scale[1]) - y0
            mask = mask[y[:, None], x[None, :]]
        return (columns.start, rows.start, columns.stop, rows.stop), mask

    def multipolygon(self, each: SceneObject) -> MultiPolygon:
        """An object's outline in pixels of the scene, holes kept, as a shapely geometry."""
        import shapely

        parts = [
            shapely.Polygon(polygon.exterior + corner, [hole + corner for hole in polygon.holes])
            for corner, mask in self._dense_parts(each)
            for polygon in mask_to_polygons(mask)
        ]
        # Corners lie on whole pixels, so that parts of neighbouring cells meet exactly.
        outline = parts[0] if len(parts) == 1 else shapely.union_all(parts)
        if outline.geom_type == "Polygon":
            outline = shapely.MultiPolygon([outline])
        elif not parts:
            outline = shapely.MultiPolygon()
        return shapely.transform(outline, self._scene_corners)

    def _dense_parts(
        self, each: SceneObject
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """An object in working pixels: as one mask with its corner, or, if it is large, as one for
        each cell.
        """
        pieces = self.store.pieces_of(each.id)
        x0, y0, x1, y1 = each.box
        if len(pieces) == 1 or (x1 - x0) * (y1 - y0) > MAX_DENSE_PIXELS:
            for piece in pieces:
                yield np.array(piece.box[:2]), _mask_of(piece)
        elif pieces:
            whole = np.zeros((y1 - y0, x1 - x0), dtype=np.bool_)
            for piece in pieces:
                left, top, right, bottom = piece.box
                whole[top - y0 : bottom - y0, left - x0 : right - x0] |= _mask_of(piece)
            yield np.array([x0, y0]), whole

    def _scene_corners(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        height, width = self.info.size
        scene = (xy - self.grid.offset) * self.grid.scale
        return np.clip(scene, 0.0, (width, height))

    def _scene_xy(self, xy: tuple[float, float]) -> list[float]:
        (x, y), (sx, sy) = self.grid.offset, self.grid.scale
        return [(xy[0] - x) * sx, (xy[1] - y) * sy]

    def write_geopackage(self, path: str | Path) -> None:
        """Write a GeoPackage with a layer of multipolygons (`samfast.scenes.geopackage`)."""
        from samfast.scenes.geopackage import write_geopackage

        write_geopackage(path, self)

    def write_geojson(self, path: str | Path) -> None:
        """Write a GeoJSON FeatureCollection (`samfast.scenes.scene_geojson`)."""
        from samfast.scenes.scene_geojson import write_scene_geojson

        write_scene_geojson(path, self)

    def write_labels(self, path: str | Path) -> None:
        """Write a label raster: tiled GeoTIFF, or OME-Zarr for a path that ends in .zarr."""
        from samfast.scenes.label_raster import write_label_raster

        write_label_raster(path, self)

    def write_coco(self, path: str | Path) -> None:
        """Write a COCO instances file with RLE in pixels of the scene."""
        from samfast.outputs.coco_instances import write_coco

        with write_coco(path, keep_ids=True) as coco:
            name = Path(self.info.name).name
            records = ({**record, "annotation_id": record["id"]} for record in self)
            coco.add(1, name, self.info.size, records)


def _mask_of(piece: Piece) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = piece.box
    return coco_rle.decode({"size": [y1 - y0, x1 - x0], "counts": piece.runs})


def scene_range(low: int, high: int, offset: float, scale: float, length: int) -> range:
    """The scene pixels whose centres lie in the working pixels low:high."""
    first = math.ceil((low - offset) * scale - 0.5)
    last = math.ceil((high - offset) * scale - 0.5)
    first = min(max(first, 0), length)
    return range(first, max(first, min(last, length)))


def _working(pixels: range, offset: float, scale: float) -> NDArray[np.int64]:
    """The working pixel in which the centre of each scene pixel lies."""
    centres = (np.arange(pixels.start, pixels.stop) + 0.5) / scale + offset
    working: NDArray[np.int64] = np.floor(centres).astype(np.int64)
    return working


def scene_rle(
    pieces: Sequence[tuple[Box, NDArray[np.bool_]]], size: Size
) -> tuple[dict[str, Any], int]:
    """COCO RLE in a whole scene of (H, W) pixels of parts with their boxes; and their pixels."""
    runs, area = _scene_runs(pieces, *size)
    (counts,) = strings(mask_runs.join([runs], size))
    return {"size": list(size), "counts": counts}, area


def _scene_runs(
    pieces: Sequence[tuple[Box, NDArray[np.bool_]]], height: int, width: int
) -> tuple[NDArray[np.int64], int]:
    """COCO's run lengths in the whole scene, zeros first, and the number of pixels.

    Takes memory by the number of runs, not by the size of the object or of the scene.
    """
    starts, ends = [], []
    for (x0, y0, _, _), mask in pieces:
        padded = np.zeros((mask.shape[1], mask.shape[0] + 2), dtype=np.int8)
        padded[:, 1:-1] = mask.T
        steps = np.diff(padded, axis=1)
        column, begin = np.nonzero(steps == 1)
        _, end = np.nonzero(steps == -1)
        first = (column + x0) * height + y0
        starts.append(first + begin)
        ends.append(first + end)
    nothing = np.zeros(0, dtype=np.int64)
    start, end = np.concatenate([nothing, *starts]), np.concatenate([nothing, *ends])
    order = np.argsort(start)
    start, end = start[order], end[order]
    apart = start[1:] != end[:-1]  # else a run continues in the next piece or column
    start = start[np.concatenate([[True], apart])] if start.size else start
    end = end[np.concatenate([apart, [True]])] if end.size else end
    edges = np.stack([start, end], 1).reshape(-1)
    runs = np.diff(np.concatenate([[0], edges, [height * width]]))
    if start.size and runs[-1] == 0:
        runs = runs[:-1]
    return runs.astype(np.int64), int((end - start).sum())


def _hull(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*[box for box in boxes if box[0] < box[2]] or [(0, 0, 0, 0)], strict=True)
    return min(x0), min(y0), max(x1), max(y1)
