"""Images inside tar files (WebDataset's, for example) and Parquet files."""

from __future__ import annotations

import tarfile
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from samfast.cluster.shards import Entry, key_of
from samfast.errors import DatasetError, ImageError, MissingExtraError, one_line

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "content")
"""Names of a Parquet column of images, the likeliest first; else it is the only one of bytes."""

KEY_COLUMNS = ("__key__", "key", "file_name", "filename", "image_path", "path", "image_id", "id")
"""Names of a Parquet column that names images; without one they are numbered."""

MAX_OPEN_GROUPS = 2
"""Row groups of Parquet files that are held in memory: entries are read in their order, by several
threads at once."""


def is_parquet(place: str) -> bool:
    """Whether a file is a Parquet file, by its name."""
    return place.lower().endswith(".parquet")


def tar_entries(place: str, name: str, suffixes: Collection[str]) -> list[Entry]:
    """The images of a tar file, in its order, called `name/member`; other members are left out.

    Raises DatasetError if it is damaged or compressed.
    """
    try:
        with _opened(place) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            return [
                Entry(key_of(f"{name}/{member.name}"), member.size, place, member.offset_data)
                for member in archive
                if member.isreg() and PurePosixPath(member.name).suffix.lower() in suffixes
            ]
    except tarfile.TarError as error:
        raise DatasetError(
            f"{place}: cannot be read as a tar file ({one_line(error)}); it must be whole and not "
            "compressed"
        ) from error


def parquet_entries(place: str, name: str, size: int) -> list[Entry]:
    """The rows of a Parquet file of images, called `name/key`, or `name/row` where it has no keys.

    Raises DatasetError if it is damaged or has no column of image bytes.
    """
    with _parquet(place) as (file, columns):
        count = file.metadata.num_rows
        keys: list[Any] = [None] * count
        if columns.key is not None:
            column = file.read(columns=[columns.key]).column(0)
            for field in columns.key.split(".")[1:]:
                column = _field(column, field)
            keys = column.to_pylist()
    named = len({key for key in keys if key is not None}) == count
    return [
        Entry(key_of(f"{name}/{key if named else row}"), -1, place, row)
        for row, key in enumerate(keys)
    ]


def parquet_image(place: str, row: int) -> bytes:
    """The bytes of the image in a row.

    Raises ImageError if the row has none, OSError or DatasetError if the file cannot be read.
    """
    column, index = _GROUPS.column(place, row)
    data = column[index].as_py()
    if not isinstance(data, bytes):
        raise ImageError(f"{place}: row {row} holds no image")
    return data


@dataclass(frozen=True)
class _Columns:
    """The columns of images and of their names, as Parquet writes their paths."""

    image: str
    key: str | None


class _OpenGroups:
    """The image columns of the row groups that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[str, int], tuple[int, Any]] = OrderedDict()

    def column(self, place: str, row: int) -> tuple[Any, int]:
        """The column of images of the row's group, and the row's index in it."""
        with self._lock:
            for (group_place, first), (count, column) in self._groups.items():
                if group_place == place and first <= row < first + count:
                    self._groups.move_to_end((group_place, first))
                    return column, row - first
            first, count, column = _read_group(place, row)
            self._groups[place, first] = count, column
            while len(self._groups) > MAX_OPEN_GROUPS:
                self._groups.popitem(last=False)
            return column, row - first


_GROUPS = _OpenGroups()


def _read_group(place: str, row: int) -> tuple[int, int, Any]:
    """The first row of a row's group, its number of rows, and its column of images."""
    with _parquet(place) as (file, columns):
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if row < first + count:
                column = file.read_row_group(group, columns=[columns.image]).column(0)
                for field in columns.image.split(".")[1:]:
                    column = _field(column, field)
                return first, count, column
            first += count
    raise OSError(f"it has {first} rows, and row {row} was there")


def _field(column: Any, name: str) -> Any:
    """The field of a column of structs."""
    import pyarrow.compute

    return pyarrow.compute.struct_field(column, name)


@contextmanager
def _parquet(place: str) -> Iterator[tuple[Any, _Columns]]:
    """A Parquet file, and its columns of images."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(f"{place} needs pyarrow: pip install 'samfast[cluster]'") from error
    with _opened(place) as stream:
        try:
            with pyarrow.parquet.ParquetFile(stream) as file:
                yield file, _columns(place, file.schema_arrow)
        except pyarrow.ArrowInvalid as error:
            raise DatasetError(
                f"{place}: cannot be read as a Parquet file ({one_line(error)})"
            ) from error


def _columns(place: str, schema: Any) -> _Columns:
    """Which columns hold images, as bytes or as datasets of Hugging Face do, and their names."""
    import pyarrow.types as kinds

    def is_bytes(kind: Any) -> bool:
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    def is_image(kind: Any) -> bool:
        return is_bytes(kind) or (
            kinds.is_struct(kind)
            and kind.get_field_index("bytes") >= 0
            and is_bytes(kind.field("bytes").type)
        )

    names = [field.name for field in schema if is_image(field.type)]
    likely = [name for name in IMAGE_COLUMNS if name in names]
    if not likely and len(names) != 1:
        columns = f"{', '.join(names)} hold bytes" if names else "no column holds bytes"
        raise DatasetError(f"{place}: {columns}; call the column of images image")
    image = (likely or names)[0]
    kind = schema.field(image).type
    key = _key_column(schema)
    if kinds.is_struct(kind):
        if key is None and kind.get_field_index("path") >= 0:
            key = f"{image}.path"
        image = f"{image}.bytes"
    return _Columns(image, key)


def _key_column(schema: Any) -> str | None:
    """The column of texts or whole numbers that names images, or None."""
    import pyarrow.types as kinds

    for name in KEY_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_integer(kind):
                return name
    return None


@contextmanager
def _opened(place: str) -> Iterator[Any]:
    """A file to read, on a disk or at a URL."""
    if "://" not in place:
        with open(place, "rb") as file:
            yield file
        return
    import fsspec

    with fsspec.open(place, "rb") as file:
        yield file
