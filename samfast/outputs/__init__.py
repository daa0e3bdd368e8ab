"""Masks -> files: records, COCO instances, label maps, polygons and more, all written whole.

Names are imported at their first use: a program that writes one format does not wait for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samfast.atomic_files import atomic_open, atomic_write
from samfast.coco_rle import MaskLike, decode, encode
from samfast.first_use import imported_name

if TYPE_CHECKING:
    from samfast.outputs.coco_instances import CocoWriter, write_coco
    from samfast.outputs.colours import distinct_colours
    from samfast.outputs.contours import enclosed_area, mask_to_contours, perimeter, simplify_ring
    from samfast.outputs.cutouts import cutout, write_cutouts
    from samfast.outputs.cvat_masks import cvat_crop, cvat_runs
    from samfast.outputs.geojson import geojson_geometry, write_geojson
    from samfast.outputs.label_studio_masks import brush_rle
    from samfast.outputs.labels import label_map, write_labels
    from samfast.outputs.npz import read_npz, write_masks_npz, write_records_npz
    from samfast.outputs.overlay import draw_overlay, write_overlay
    from samfast.outputs.overlay_text import legend_of
    from samfast.outputs.polygons import Polygon, mask_to_polygons, write_polygons
    from samfast.outputs.records import RECORD_KEYS, read_records, records_of, write_records
    from samfast.outputs.sa1b import write_sa1b
    from samfast.outputs.yolo import write_yolo, write_yolo_dataset

__all__ = [
    "RECORD_KEYS",
    "CocoWriter",
    "MaskLike",
    "Polygon",
    "atomic_open",
    "atomic_write",
    "brush_rle",
    "cutout",
    "cvat_crop",
    "cvat_runs",
    "decode",
    "distinct_colours",
    "draw_overlay",
    "enclosed_area",
    "encode",
    "geojson_geometry",
    "label_map",
    "legend_of",
    "mask_to_contours",
    "mask_to_polygons",
    "perimeter",
    "read_npz",
    "read_records",
    "records_of",
    "simplify_ring",
    "write_coco",
    "write_cutouts",
    "write_geojson",
    "write_labels",
    "write_masks_npz",
    "write_overlay",
    "write_polygons",
    "write_records",
    "write_records_npz",
    "write_sa1b",
    "write_yolo",
    "write_yolo_dataset",
]

_HOMES = {
    "RECORD_KEYS": "records",
    "CocoWriter": "coco_instances",
    "Polygon": "polygons",
    "brush_rle": "label_studio_masks",
    "cutout": "cutouts",
    "cvat_crop": "cvat_masks",
    "cvat_runs": "cvat_masks",
    "distinct_colours": "colours",
    "draw_overlay": "overlay",
    "enclosed_area": "contours",
    "geojson_geometry": "geojson",
    "label_map": "labels",
    "legend_of": "overlay_text",
    "mask_to_contours": "contours",
    "mask_to_polygons": "polygons",
    "perimeter": "contours",
    "read_npz": "npz",
    "read_records": "records",
    "records_of": "records",
    "simplify_ring": "contours",
    "write_coco": "coco_instances",
    "write_cutouts": "cutouts",
    "write_geojson": "geojson",
    "write_labels": "labels",
    "write_masks_npz": "npz",
    "write_overlay": "overlay",
    "write_polygons": "polygons",
    "write_records": "records",
    "write_records_npz": "npz",
    "write_sa1b": "sa1b",
    "write_yolo": "yolo",
    "write_yolo_dataset": "yolo",
}
"""The module of each name that is imported at its first use."""


def __getattr__(name: str) -> Any:
    return imported_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
