"""A path, URL, array or source -> a Source."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from samfast.errors import ImageError, shown
from samfast.scenes.array_source import of_array
from samfast.scenes.raster_source import RasterSource
from samfast.scenes.source import Source

SceneLike = str | os.PathLike[str] | np.ndarray[Any, Any] | Source
"""A path or URL, an (H, W) or (H, W, C) array, which may be memory-mapped, or a Source."""


def open_scene(scene: SceneLike, nodata: float | None = None) -> Source:
    """Open a scene to read it window by window.

    nodata  a value that means no data, besides what the file says; for files that GDAL reads

    Raises ImageError, naming the file, for what cannot be opened; MissingExtraError without the
    packages that read it.
    """
    if isinstance(scene, np.ndarray):
        return of_array(scene, f"array of shape {scene.shape}")
    if isinstance(scene, str | os.PathLike):
        path = os.fsdecode(scene)
        if is_ome_zarr(path):
            from samfast.scenes.ome_source import open_ome_zarr

            return open_ome_zarr(path)
        if is_ome_tiff(path):
            from samfast.scenes.ome_source import open_ome_tiff

            return open_ome_tiff(path)
        return RasterSource(path, nodata)
    if all(hasattr(scene, name) for name in ("info", "read", "close")):
        return scene
    raise ImageError(f"{shown(scene)}; a scene is a path, a URL or an array (H, W, C)")


def is_ome_zarr(path: str) -> bool:
    """Whether a path is a Zarr group: a folder with its metadata, or a URL that ends so."""
    names = (".zgroup", "zarr.json", ".zattrs")
    remote = "://" in path and path.rstrip("/").endswith(".zarr")
    return remote or any(os.path.isfile(os.path.join(path, name)) for name in names)


def is_ome_tiff(path: str) -> bool:
    """Whether a path is a TIFF with OME metadata, by its name."""
    return path.lower().endswith((".ome.tif", ".ome.tiff", ".ome.tf2", ".ome.btf"))
