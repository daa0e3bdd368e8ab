"""The masks that a run has written, image by image, in the order of its source."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from samfast.cluster.destination import Destination
from samfast.cluster.manifest import Manifest
from samfast.cluster.shard_files import read_header, shard_path
from samfast.errors import DatasetError, one_line
from samfast.types import Size

RECORD_COLUMNS = ("area", "bbox", "predicted_iou", "stability_score")

ID_COLUMNS = ("category_id", "annotation_id")


@dataclass(frozen=True)
class StoredImage:
    """An image with its masks.

    size       (H, W)
    source_id  of the image, where its prompts came with one
    records    segmentation, area, bbox, predicted_iou, stability_score, and, of prompted objects
               that have them, category_id and annotation_id
    """

    key: str
    size: Size
    source_id: Any
    records: list[dict[str, Any]]


def stored_images(manifest: Manifest) -> Iterator[StoredImage]:
    """Every image that has an answer, also those without a mask. One shard is held in memory.

    Raises DatasetError for a file that is damaged.
    """
    for number in sorted(manifest.shards):
        path = shard_path(manifest.identity.work, number)
        header = read_header(manifest.destination, path)
        records: dict[str, list[dict[str, Any]]] = {}
        for row in _rows(manifest.destination, path):
            records.setdefault(row["image"], []).append(_record(row))
        for key, width, height, source_id in header.images:
            yield StoredImage(key, (height, width), source_id, records.get(key, []))


def _rows(destination: Destination, path: str) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    data = destination.read(path)
    try:
        if data is None:
            raise OSError("no such file")
        # Checksums of pages: a disk may have changed a bit.
        table = pyarrow.parquet.read_table(io.BytesIO(data), page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(
            f"{destination.below(path)}: damaged ({one_line(error)}); remove it and run again"
        ) from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _record(row: dict[str, Any]) -> dict[str, Any]:
    size, counts = row["segmentation_size"], row["segmentation_counts"]
    record = {"segmentation": {"size": size, "counts": counts}}
    record |= {name: row[name] for name in RECORD_COLUMNS}
    return record | {name: row[name] for name in ID_COLUMNS if row.get(name) is not None}
