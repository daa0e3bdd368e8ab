"""Labels for training YOLO segmentation models, as Ultralytics reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.atomic_files import atomic_write
from samfast.outputs.polygons import Polygon, mask_to_polygons


def write_yolo(
    path: str | os.PathLike[str],
    records: Sequence[Mapping[str, Any]],
    classes: Mapping[Any, int] | None = None,
) -> None:
    """Write the records of an image as a text file, one row per mask: class x1 y1 x2 y2 ...

    classes  the class index of each `category_id`; None, or a record without that key: class 0

    Coordinates are shares of the image's width and height. A row holds a single outline, so parts
    and holes are joined to it by a line there and back, which encloses nothing; Ultralytics joins
    the parts of a COCO annotation in this way. Empty masks have no row.

    Raises InputError if a mask is damaged, OutputError if the file cannot be written.

        samfast.outputs.write_yolo("labels/photo.txt", sam.segment(["photo.jpg"])[0])
    """
    rows = []
    for record in records:
        mask = coco_rle.decode(record["segmentation"])
        polygons = mask_to_polygons(mask)
        if polygons:
            shares = joined_outline(polygons) / (mask.shape[1], mask.shape[0])
            index = (classes or {}).get(record.get("category_id"), 0)
            rows.append(" ".join([str(index), *(f"{share:.6g}" for share in shares.flat)]) + "\n")
    atomic_write(path, "".join(rows).encode())


def write_yolo_dataset(path: str | os.PathLike[str], names: Sequence[str]) -> None:
    """Write data.yaml beside the folders images/ and labels/: the names of the classes, from 0.

    Ultralytics finds the labels of images/a/b.jpg in labels/a/b.txt. Raises OutputError if the file
    cannot be written.

        samfast.outputs.write_yolo_dataset("data.yaml", ["leaf", "stem"])
    """
    lines = ["# The photos belong in images/, beside labels/.", "train: images", "val: images"]
    # A JSON string is a YAML string too.
    lines += ["names:", *(f"  {index}: {json.dumps(name)}" for index, name in enumerate(names))]
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def joined_outline(polygons: Sequence[Polygon]) -> NDArray[np.int64]:
    """(K, 2) XY: all rings of a mask as one, which encloses the same pixels.

    Each ring is joined to the outline so far at the two corners that are closest.
    """
    from scipy.spatial import cKDTree

    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
    outline = rings[0]
    for ring in rings[1:]:
        distances, corners = cKDTree(outline).query(ring)
        start = int(distances.argmin())
        corner = int(corners[start])
        around = np.roll(ring, -start, axis=0)
        outline = np.concatenate([outline[: corner + 1], around, around[:1], outline[corner:]])
    return outline
