"""GeoJSON: the masks of an image as features, in pixels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.atomic_files import atomic_write
from samfast.coco_rle import MaskLike
from samfast.outputs.polygons import mask_to_polygons
from samfast.outputs.records import json_line


def write_geojson(path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Write the records of an image as a FeatureCollection (RFC 7946), one Feature per record.

    A geometry is a Polygon or a MultiPolygon with holes, or null for an empty mask. Coordinates are
    XY in pixels from the upper left corner of the image, y downward, not longitude and latitude.
    A feature's bbox is [x0, y0, x1, y1], its id the record's index, its properties the record's
    other keys.

    Raises InputError if a mask is damaged, OutputError if the file cannot be written.

        samfast.outputs.write_geojson("photo.geojson", sam.segment(["photo.jpg"])[0])
    """
    lines = [
        json_line(_feature(index, record), f"record {index}")
        for index, record in enumerate(records)
    ]
    text = '{"type": "FeatureCollection", "features": [\n' + ",\n".join(lines) + "\n]}\n"
    atomic_write(path, text.encode())


def _feature(index: int, record: Mapping[str, Any]) -> dict[str, Any]:
    rle = coco_rle.encode(record["segmentation"])
    x, y, width, height = coco_rle.bounding_box(rle)
    rest = {key: value for key, value in record.items() if key not in ("segmentation", "bbox")}
    return {
        "type": "Feature",
        "id": index,
        "bbox": [x, y, x + width, y + height],
        "geometry": geojson_geometry(rle),
        "properties": rest,
    }


def geojson_geometry(mask: MaskLike) -> dict[str, Any] | None:
    """A mask as a Polygon or MultiPolygon with holes, along the edges of pixels; None if empty.

    Coordinates are XY in pixels as in `write_geojson`. Raises InputError if it is not a mask.

        samfast.outputs.geojson_geometry(mask)
        # {"type": "Polygon", "coordinates": [[[3, 1], [8, 1], [8, 5], [3, 5], [3, 1]]]}
    """
    coordinates = [
        [_closed(ring) for ring in (polygon.exterior, *polygon.holes)]
        for polygon in mask_to_polygons(coco_rle.decode(mask))
    ]
    if not coordinates:
        return None
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}


def _closed(ring: NDArray[np.int64]) -> list[list[int]]:
    """The corners with the first one repeated at the end, as GeoJSON wants them."""
    corners: list[list[int]] = ring.tolist()
    return [*corners, corners[0]]
