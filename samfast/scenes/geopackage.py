"""GeoPackage: the objects of a scene as a layer of multipolygons with the scene's CRS."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfast.errors import MissingExtraError, OutputError
from samfast.scenes.features import FIELDS, Feature, features
from samfast.scenes.scene_objects import SceneObjects

LAYER, BATCH = "objects", 2048
"""The layer's name, and how many features are in memory at a time."""

_DTYPES = (np.int64, np.float64, np.float64, np.float64, np.float64, np.int32, np.bool_)


def write_geopackage(path: str | os.PathLike[str], objects: SceneObjects) -> None:
    """Write the objects as multipolygons with the properties of `samfast.scenes.features.FIELDS`.

    Coordinates are those of the scene's CRS, or pixels, y downward, of a scene without one. The
    file appears when it is whole; an older one of that name is replaced.

    Raises MissingExtraError without pyogrio, OutputError if the file cannot be written.
    """
    try:
        import pyogrio
        import shapely
        from pyogrio.errors import DataSourceError
    except ImportError as error:
        raise MissingExtraError(
            "GeoPackages need pyogrio and shapely; pip install 'samfast[large]'"
        ) from error
    target = Path(path)
    temporary = target.with_name(f".samfast-{secrets.token_hex(8)}.gpkg")
    try:
        written = False
        for batch in _batches(features(objects)):
            columns: list[NDArray[Any]] = [
                np.array([np.nan if v is None else v for v in column], dtype=dtype)
                for column, dtype in zip(_columns(batch), _DTYPES, strict=True)
            ]
            with warnings.catch_warnings():
                # A scene without CRS gives a layer without one, which is meant.
                warnings.filterwarnings("ignore", message="'crs' was not provided")
                pyogrio.raw.write(
                    temporary,
                    shapely.to_wkb(np.array([each.outline for each in batch], dtype=object)),
                    columns,
                    np.array(FIELDS),
                    layer=LAYER,
                    driver="GPKG",
                    geometry_type="MultiPolygon",
                    crs=objects.georeference.crs,
                    append=written,
                )
            written = True
        os.replace(temporary, target)
    except (DataSourceError, OSError) as error:
        raise OutputError(f"{path}: cannot be written: {' '.join(str(error).split())}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _batches(all_features: Iterator[Feature]) -> Iterator[list[Feature]]:
    """BATCH features at a time; of none, one empty batch, which makes the layer."""
    batch = list(islice(all_features, BATCH))
    yield batch
    while batch := list(islice(all_features, BATCH)):
        yield batch


def _columns(batch: list[Feature]) -> list[tuple[int | float | None, ...]]:
    return [tuple(each.values[i] for each in batch) for i in range(len(FIELDS))]
