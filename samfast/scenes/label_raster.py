"""Label rasters: 0 where there is nothing, else the object's id; a tiled GeoTIFF or OME-Zarr."""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfast.errors import MissingExtraError, OutputError
from samfast.scenes.georeference import Georeference
from samfast.scenes.scene_objects import SceneObjects, scene_range

BLOCK = 512
"""Side of the file's inner tiles in pixels."""

CACHE_BYTES = 64 << 20
"""GDAL's cache of blocks while a file is written; its default is a share of all memory."""


def write_label_raster(path: str | os.PathLike[str], objects: SceneObjects) -> None:
    """Write a raster of the scene's size, CRS and transform, uint32. Where objects overlap, the
    smaller one is on top.

    path  ending in .zarr: OME-Zarr 0.4 labels, in a group `labels/objects`; otherwise a GeoTIFF,
          tiled, compressed by deflate, BigTIFF where it must be

    Written cell by cell; it appears when it is whole. Raises OutputError if it cannot be written.
    """
    target = Path(path)
    write = _write_zarr if target.suffix == ".zarr" else _write_tiff
    temporary = target.with_name(f".samfast-{secrets.token_hex(8)}{target.suffix}")
    try:
        write(temporary, objects)
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except ImportError as error:
        raise MissingExtraError(
            f"label rasters need {error.name}; pip install 'samfast[large]'"
        ) from error
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path}: cannot be written: {' '.join(str(error).split())}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def label_bands(objects: SceneObjects) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """The label raster from top to bottom, in bands of rows: the first row, and (h, W) labels.

    A band is what a row of cells covers, and as many rows of cells are in memory.
    """
    grid, (height, width) = objects.grid, objects.info.size
    first = 0
    for row in range(grid.rows):
        numbers = [row * grid.columns + column for column in range(grid.columns)]
        stop = height if row == grid.rows - 1 else _stop(objects, numbers[0])
        labels = np.zeros((stop - first, width), dtype=np.uint32)
        for number in numbers:
            for piece in objects.store.pieces_in(number):
                (x0, y0, x1, y1), mask = objects.pixels(piece)
                labels[y0 - first : y1 - first, x0:x1][mask] = piece.object
        yield first, labels
        first = stop


def _aligned(
    bands: Iterator[tuple[int, NDArray[np.uint32]]],
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """The same rows in bands that begin where the file's inner tiles do, so that none of these is
    written twice.
    """
    first, waiting = 0, np.zeros((0, 0), dtype=np.uint32)
    for start, band in bands:
        waiting = np.concatenate([waiting, band]) if waiting.size else band
        rows = (start + len(band)) // BLOCK * BLOCK - first
        if rows > 0:
            yield first, waiting[:rows]
            first, waiting = first + rows, waiting[rows:]
    if len(waiting):
        yield first, waiting


def _stop(objects: SceneObjects, number: int) -> int:
    """The scene row below a row of cells."""
    _, y0, _, y1 = objects.grid.cell(number)
    height = objects.info.size[0]
    return scene_range(y0, y1, objects.grid.offset[1], objects.grid.scale[1], height).stop


def _write_tiff(path: Path, objects: SceneObjects) -> None:
    import rasterio
    from rasterio.windows import Window

    height, width = objects.info.size
    reference = objects.georeference
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": 1,
        "dtype": "uint32",
        "nodata": 0,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
    }
    if reference.crs is not None:
        profile["crs"] = reference.crs
    if not reference.in_pixels:
        profile["transform"] = rasterio.Affine(*reference.transform)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as file:
            for first, labels in _aligned(label_bands(objects)):
                file.write(labels, 1, window=Window(0, first, width, len(labels)))


def _write_zarr(path: Path, objects: SceneObjects) -> None:
    import zarr

    height, width = objects.info.size
    group = zarr.open_group(path, mode="w", zarr_format=2)
    labels = group.create_group("labels")
    labels.attrs["labels"] = ["objects"]
    image = labels.create_group("objects")
    array = image.create_array(
        "0",
        shape=(height, width),
        chunks=(min(BLOCK, height), min(BLOCK, width)),
        dtype="uint32",
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    image.attrs["multiscales"] = [
        {
            "version": "0.4",
            "name": "objects",
            "axes": [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}],
            "datasets": [
                {
                    "path": "0",
                    "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}],
                }
            ],
        }
    ]
    image.attrs["image-label"] = {"version": "0.4", **_source(objects.georeference)}
    for first, band in _aligned(label_bands(objects)):
        array[first : first + len(band)] = band


def _source(reference: Georeference) -> dict[str, Any]:
    """OME-Zarr has no place for a CRS; it is kept as properties of our own."""
    if reference.in_pixels:
        return {}
    return {"samfast": {"crs": reference.crs, "transform": list(reference.transform)}}
