"""Masks -> files: COCO JSON, PNG label maps, NPZ, overlays. Every file is whole or absent."""

from samfast.atomic_files import atomic_open, atomic_write
from samfast.coco_rle import MaskLike, decode, encode
from samfast.outputs.colours import distinct_colours
from samfast.outputs.labels import label_map, write_labels
from samfast.outputs.npz import read_npz, write_masks_npz, write_records_npz
from samfast.outputs.overlay import draw_overlay, write_overlay
from samfast.outputs.polygons import Polygon, mask_to_polygons
from samfast.outputs.records import RECORD_KEYS, read_records, records_of, write_records

__all__ = [
    "RECORD_KEYS",
    "MaskLike",
    "Polygon",
    "atomic_open",
    "atomic_write",
    "decode",
    "distinct_colours",
    "draw_overlay",
    "encode",
    "label_map",
    "mask_to_polygons",
    "read_npz",
    "read_records",
    "records_of",
    "write_labels",
    "write_masks_npz",
    "write_overlay",
    "write_records",
    "write_records_npz",
]
