"""The JSON layout of the SA-1B data set: one file per image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from samfast import coco_rle
from samfast.atomic_files import atomic_write
from samfast.outputs.records import json_line
from samfast.types import Size

_KEYS = ("area", "predicted_iou", "stability_score", "crop_box", "point_coords")


def write_sa1b(
    path: str | os.PathLike[str],
    records: Sequence[Mapping[str, Any]],
    size: Size,
    file_name: str,
    *,
    image_id: int = 1,
) -> None:
    """Write the records of an image of `size` (H, W) as {"image": ..., "annotations": [...]}.

    `image` has image_id, width, height and file_name; an annotation has the record's keys and an
    id, from 1 on. A bbox is as in the records, whose generator made SA-1B: XYWH with W and H from
    first to last pixel.

    Raises InputError if a mask is damaged, OutputError if the file cannot be written.

        samfast.outputs.write_sa1b("photo.json", records, (1500, 2250), "photo.jpg")
    """
    image = {"image_id": image_id, "width": size[1], "height": size[0], "file_name": file_name}
    annotations = [
        {
            "id": number,
            "segmentation": coco_rle.encode(record["segmentation"]),
            "bbox": record["bbox"],
            **{key: record[key] for key in _KEYS},
        }
        for number, record in enumerate(records, start=1)
    ]
    content = json_line({"image": image, "annotations": annotations}, file_name)
    atomic_write(path, (content + "\n").encode())
