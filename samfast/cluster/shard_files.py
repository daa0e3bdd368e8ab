"""A shard's answers as one Parquet file, which says by itself of which run and shard it is.

Equal answers make equal bytes. The footer holds the run's identity, the shard's number, its images,
also those without a mask, and its failures, so that a lost manifest can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from samfast.cluster.destination import Destination
from samfast.cluster.shards import RunIdentity
from samfast.cluster.work import DoneImage, Failure, ShardAnswers
from samfast.errors import DatasetError, one_line

MASKS, EMBEDDED = "masks", "embedded"
"""The folders of shards of masks, and of shards that say where embeddings are."""

HEADER = b"samfast.shard"
"""The key of the shard's header among the file's metadata."""

COMPRESSION = "zstd"


@dataclass(frozen=True)
class ShardRecord:
    """A shard that is done, as the manifest lists it.

    rows    of its file
    failed  images without an answer
    bytes   of its file
    """

    number: int
    images: int
    failed: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class ShardHeader:
    """What the footer of a shard's file says.

    identity  of its run
    images    key, width, height and id of each image that has an answer; its id is that of its
              prompts, or None
    rows      of the file
    """

    identity: RunIdentity
    number: int
    rows: int
    images: Sequence[tuple[str, int, int, Any]]
    failures: Sequence[Failure]


def shard_folder(work: str) -> str:
    """The folder of the shards of a kind of work, below the destination."""
    return EMBEDDED if work == "embeddings" else MASKS


def shard_path(work: str, number: int) -> str:
    """The name of a shard's file, below the destination."""
    return f"{shard_folder(work)}/{number:08d}.parquet"


def write_shard(
    destination: Destination, identity: RunIdentity, answers: ShardAnswers
) -> ShardRecord:
    """Write a shard's file, whole or not at all; OutputError if that fails."""
    data, rows = shard_bytes(identity, answers)
    destination.write(shard_path(identity.work, answers.number), data)
    return ShardRecord(answers.number, len(answers.images), len(answers.failures), rows, len(data))


def shard_bytes(identity: RunIdentity, answers: ShardAnswers) -> tuple[bytes, int]:
    """The content of a shard's file, and its number of rows."""
    import pyarrow
    import pyarrow.parquet

    header = {
        "identity": asdict(identity),
        "number": answers.number,
        "images": [[each.key, each.width, each.height, each.source_id] for each in answers.images],
        "failures": [[each.image, each.error, each.reason] for each in answers.failures],
    }
    kind = _Embedded if identity.work == "embeddings" else _Masks
    schema = kind.schema(identity)
    columns = kind.columns(answers.images, schema)
    rows = len(columns["image"])
    for name in ("model", "recipe", "versions"):
        columns[name] = [getattr(identity, name)] * rows
    sink = pyarrow.BufferOutputStream()
    with pyarrow.parquet.ParquetWriter(
        sink,
        schema,
        compression=COMPRESSION,
        use_dictionary=[name for name in kind.repeated if name in columns],
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        writer.write_table(pyarrow.table(columns, schema=schema))
        writer.add_key_value_metadata({HEADER: _json(header)})
    return sink.getvalue().to_pybytes(), rows


def read_header(destination: Destination, path: str) -> ShardHeader:
    """The header of a shard's file; DatasetError if it is damaged or another program's."""
    import pyarrow
    import pyarrow.parquet

    try:
        with destination.opened(path) as file:
            footer = pyarrow.parquet.read_metadata(file)
        header = json.loads((footer.metadata or {})[HEADER])
        return ShardHeader(
            RunIdentity(**header["identity"]),
            int(header["number"]),
            footer.num_rows,
            [(str(key), int(w), int(h), source_id) for key, w, h, source_id in header["images"]],
            [Failure(*map(str, each)) for each in header["failures"]],
        )
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: no shard of samfast run ({one_line(error)})") from error


def failures_bytes(failures: Sequence[Failure]) -> bytes:
    """The content of failures.parquet: image, error, reason."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    columns = {
        "image": [each.image for each in failures],
        "error": [each.error for each in failures],
        "reason": [each.reason for each in failures],
    }
    table = pyarrow.table(columns, pyarrow.schema([(name, text) for name in columns]))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression=COMPRESSION, write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


class _Masks:
    """One row a mask."""

    repeated = ("image", "category_id", "model", "recipe", "versions")
    """The columns that have few distinct values."""

    @staticmethod
    def schema(identity: RunIdentity) -> Any:
        import pyarrow

        text, whole, real = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
        fields = [
            ("image", text),
            ("image_width", whole),
            ("image_height", whole),
            ("object", whole),
            ("segmentation_size", pyarrow.list_(whole)),
            ("segmentation_counts", text),
            ("bbox", pyarrow.list_(whole)),
            ("area", pyarrow.int64()),
            ("predicted_iou", real),
            ("stability_score", real),
        ]
        if identity.work == "prompts":
            ids = text if identity.options.get("text_ids") else pyarrow.int64()
            fields += [("category_id", ids), ("annotation_id", ids)]
        return pyarrow.schema([*fields, ("model", text), ("recipe", text), ("versions", text)])

    @staticmethod
    def columns(images: Sequence[DoneImage], schema: Any) -> dict[str, list[Any]]:
        of_mask = [image for image in images for _ in image.masks]
        records = [record for image in images for _, record in image.masks]
        encoded = [record["segmentation"] for record in records]
        columns: dict[str, list[Any]] = {
            "image": [image.key for image in of_mask],
            "image_width": [image.width for image in of_mask],
            "image_height": [image.height for image in of_mask],
            "object": [number for image in images for number, _ in image.masks],
            "segmentation_size": [mask["size"] for mask in encoded],
            "segmentation_counts": [mask["counts"] for mask in encoded],
        }
        for name in ("bbox", "area", "predicted_iou", "stability_score"):
            columns[name] = [record[name] for record in records]
        for name in ("category_id", "annotation_id"):
            if name in schema.names:
                kind = schema.field(name).type
                columns[name] = [_id(record.get(name), kind) for record in records]
        return columns


class _Embedded:
    """One row an image."""

    repeated = ("model", "recipe", "versions")

    @staticmethod
    def schema(identity: RunIdentity) -> Any:
        import pyarrow

        text, whole = pyarrow.string(), pyarrow.int32()
        names = ("image_id", "embedding", "model", "recipe", "versions")
        return pyarrow.schema(
            [
                ("image", text),
                ("image_width", whole),
                ("image_height", whole),
                *((name, text) for name in names),
            ]
        )

    @staticmethod
    def columns(images: Sequence[DoneImage], schema: Any) -> dict[str, list[Any]]:
        return {
            "image": [each.key for each in images],
            "image_width": [each.width for each in images],
            "image_height": [each.height for each in images],
            "image_id": [PurePosixPath(each.embedding).stem for each in images],
            "embedding": [each.embedding for each in images],
        }


def _id(value: Any, kind: Any) -> Any:
    """An id of a COCO file as its column holds it."""
    return value if value is None or kind == "int64" else str(value)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
