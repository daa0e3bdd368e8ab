"""A COCO instances file of many images, written as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from samfast import coco_rle
from samfast.atomic_files import atomic_open
from samfast.outputs.records import json_line
from samfast.types import Size

OBJECT: dict[str, Any] = {"id": 1, "name": "object", "supercategory": "object"}
"""The category of masks that have none."""


@contextmanager
def write_coco(
    path: str | os.PathLike[str],
    categories: Sequence[Mapping[str, Any]] = (),
    *,
    keep_ids: bool = False,
) -> Iterator[CocoWriter]:
    """Write one COCO instances file, image by image; it appears, whole, when the block ends.

    categories  dictionaries with id and name; a record's `category_id` is one of their ids, and
                records without one are of the first category. None given: "object"
    keep_ids    annotations take their ids from the records' `annotation_id`, which must differ;
                otherwise they are numbered from 1

    A segmentation is COCO's compressed RLE, which loses nothing; `bbox` is XYWH around all pixels
    of the mask, `score` its predicted IoU. Only a line per image is held in memory.

    Raises OutputError if the file cannot be written; `add` raises InputError for a damaged mask.

        with samfast.outputs.write_coco("instances.json") as coco:
            for number, path in enumerate(paths, start=1):
                (records,) = sam.segment([path])
                coco.add(number, path, records.size, records)
    """
    with atomic_open(path) as file:
        writer = CocoWriter(file, list(categories) or [OBJECT], keep_ids)
        yield writer
        writer.finish()


class CocoWriter:
    """The file of `write_coco` while it is written."""

    def __init__(
        self, file: IO[bytes], categories: Sequence[Mapping[str, Any]], keep_ids: bool
    ) -> None:
        self._file, self._categories, self._keep_ids = file, categories, keep_ids
        self._images: list[str] = []
        self._count = 0
        info = {"description": "Masks found by samfast"}
        head = json.dumps({"info": info, "licenses": [], "categories": categories})
        self._file.write(f'{head[:-1]},\n"annotations": ['.encode())

    def add(
        self, image_id: Any, file_name: str, size: Size, records: Iterable[Mapping[str, Any]]
    ) -> None:
        """Write the records of an image of `size` (H, W), upright as it is shown."""
        image = {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}
        self._images.append(json.dumps(image))
        for index, record in enumerate(records):
            line = json_line(self._annotation(image_id, record), f"{file_name}: record {index}")
            self._file.write(f"{',' if self._count else ''}\n{line}".encode())
            self._count += 1

    def finish(self) -> None:
        """Write the end of the file."""
        images = ",\n".join(self._images)
        self._file.write(f'\n],\n"images": [\n{images}\n]}}\n'.encode())

    def _annotation(self, image_id: Any, record: Mapping[str, Any]) -> dict[str, Any]:
        rle = coco_rle.encode(record["segmentation"])
        rest = {key: record[key] for key in ("annotation_id",) if key in record}
        return {
            "id": record["annotation_id"] if self._keep_ids else self._count + 1,
            "image_id": image_id,
            "category_id": record.get("category_id", self._categories[0]["id"]),
            "segmentation": rle,
            "area": record["area"],
            "bbox": coco_rle.bounding_box(rle),
            "iscrowd": 0,
            "score": record["predicted_iou"],
            "stability_score": record["stability_score"],
            **rest,
        }
