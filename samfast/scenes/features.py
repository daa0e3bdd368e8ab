"""The objects of a scene as geographic features: geometry and properties, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samfast.errors import MissingExtraError
from samfast.scenes.scene_objects import SceneObjects
from samfast.scenes.tile_store import SceneObject

if TYPE_CHECKING:
    from shapely import MultiPolygon

FIELDS = ("id", "area_px", "area_m2", "predicted_iou", "stability_score", "tiles", "cut")
"""The properties of a feature. area_m2 is in square metres, null where the CRS is not projected."""


@dataclass(frozen=True, eq=False)
class Feature:
    """An object with its outline in the scene's coordinates: its CRS, or pixels without one."""

    outline: MultiPolygon
    values: tuple[int | float | None, ...]


def features(objects: SceneObjects) -> Iterator[Feature]:
    """A feature for each object, with the values of FIELDS; MissingExtraError without shapely."""
    try:
        import shapely
    except ImportError as error:
        raise MissingExtraError(
            "polygons of scenes need shapely, which is not installed; pip install 'samfast[large]'"
        ) from error
    reference = objects.georeference
    per_pixel = reference.square_metres_per_pixel
    for each in objects.store.objects():
        outline = objects.multipolygon(each)
        pixels = float(outline.area)
        metres = None if per_pixel is None else pixels * per_pixel
        if not reference.in_pixels:
            outline = shapely.transform(outline, reference.to_map)
        yield Feature(outline, _values(each, pixels, metres))


def _values(
    each: SceneObject, pixels: float, metres: float | None
) -> tuple[int | float | None, ...]:
    scores = (each.predicted_iou, each.stability)
    return (each.id, pixels, metres, *scores, each.tiles, int(each.cut))
