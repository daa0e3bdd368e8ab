"""Scenes as files of many kinds."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

UTM = rasterio.Affine(0.5, 0.0, 399_960.0, 0.0, -0.5, 4_600_020.0)


def write_tiff(path: Path, pixels: NDArray[Any], **profile: Any) -> Path:
    """A GeoTIFF of (H, W, C) in UTM at half a metre, tiled by 128; the profile says otherwise."""
    height, width, count = pixels.shape
    chosen = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": count,
        "dtype": pixels.dtype.name,
        "crs": "EPSG:32618",
        "transform": UTM,
        "tiled": True,
        "blockxsize": 128,
        "blockysize": 128,
        "compress": "deflate",
        **profile,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **{k: v for k, v in chosen.items() if v is not None}) as file:
            file.write(pixels.transpose(2, 0, 1))
    return path
