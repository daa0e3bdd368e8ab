"""GeoJSON of a scene's objects, in its CRS."""

from __future__ import annotations

import json
import os
from typing import Any

from samfast.atomic_files import atomic_open
from samfast.scenes.features import FIELDS, Feature, features
from samfast.scenes.georeference import Georeference
from samfast.scenes.scene_objects import SceneObjects


def write_scene_geojson(path: str | os.PathLike[str], objects: SceneObjects) -> None:
    """Write a FeatureCollection, a feature a line, with the properties of FIELDS.

    Coordinates are those of the scene's CRS, which a member `crs` names by its EPSG code, as
    GeoJSON 2008 has it and GDAL and QGIS read it (RFC 7946 knows longitude and latitude only). A
    CRS without a code is written there as WKT, which programs do not read: take a GeoPackage then.
    Without CRS or transform they are pixels, y downward.

    Raises OutputError if the file cannot be written.
    """
    with atomic_open(path) as file:
        head = {"type": "FeatureCollection", **_crs(objects.georeference)}
        file.write(f'{json.dumps(head)[:-1]}, "features": ['.encode())
        for index, feature in enumerate(features(objects)):
            line = json.dumps(_geojson(feature), allow_nan=False)
            file.write(f"{',' if index else ''}\n{line}".encode())
        file.write(b"\n]}\n")


def _crs(reference: Georeference) -> dict[str, Any]:
    if reference.crs is None:
        return {}
    code = f"urn:ogc:def:crs:EPSG::{reference.epsg}"
    name = reference.crs if reference.epsg is None else code
    return {"crs": {"type": "name", "properties": {"name": name}}}


def _geojson(feature: Feature) -> dict[str, Any]:
    import shapely

    properties: dict[str, Any] = dict(zip(FIELDS, feature.values, strict=True))
    properties["cut"] = bool(properties["cut"])
    return {
        "type": "Feature",
        "id": properties.pop("id"),
        "properties": properties,
        "geometry": json.loads(shapely.to_geojson(feature.outline)),
    }
