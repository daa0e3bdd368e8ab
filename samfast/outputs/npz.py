"""NPZ: masks and their numbers as numpy arrays, compressed and never pickled."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.atomic_files import atomic_open
from samfast.errors import InputError, shown
from samfast.outputs.labels import by_area
from samfast.outputs.records import bounding_box, check_records, check_result
from samfast.types import Masks, Size

MAX_BYTES = 8 << 30
"""What the arrays of a file may take in memory unless the caller allows more."""

_MASKS = {
    "masks": ("|b1", ("N", "M", "H", "W")),
    "iou": ("<f4", ("N", "M")),
    "low_res": ("<f4", ("N", "M", "h", "w")),
    "bbox": ("<i8", ("N", "M", "4")),
}
_RECORDS = {
    "masks": ("|b1", ("N", "H", "W")),
    "area": ("<i8", ("N",)),
    "bbox": ("<f8", ("N", "4")),
    "crop_box": ("<f8", ("N", "4")),
    "predicted_iou": ("<f8", ("N",)),
    "stability_score": ("<f8", ("N",)),
    "point_coords": ("<f8", ("K", "2")),
    "point_offsets": ("<i8", ("N + 1",)),
}
"""The dtype and axes of each array of the two kinds of files; axes of one name are equally long."""


def write_masks_npz(path: str | os.PathLike[str], masks: Masks) -> None:
    """Write the result for one image, every mask of every object.

    masks    (N, M, H, W) bool
    iou      (N, M) float32, predicted
    low_res  (N, M, 256, 256) float32 logits
    bbox     (N, M, 4) int64 XYWH in pixels, as in the records

    Raises NumericsError as `Masks.verify`, OutputError if the file cannot be written.

        samfast.outputs.write_masks_npz("photo.npz", results[0])
    """
    check_result(masks)
    masks.verify()
    shape = tuple(masks.masks.shape)
    flat = masks.masks.flatten(0, 1)
    boxes = [bounding_box(coco_rle.dense_mask(mask)) for mask in flat]
    arrays = {
        "iou": masks.iou.detach().float().cpu().numpy(),
        "low_res": masks.low_res.detach().float().cpu().numpy(),
        "bbox": np.array(boxes, np.int64).reshape(*shape[:2], 4),
    }
    _write(path, shape, (coco_rle.dense_mask(mask) for mask in flat), arrays)


def write_records_npz(
    path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]], size: Size
) -> None:
    """Write the records of one image of `size` (H, W) as arrays named like the records' keys.

    masks            (N, H, W) bool
    area             (N,) int64 pixels
    bbox, crop_box   (N, 4) float64 XYWH in pixels
    predicted_iou    (N,) float64;  stability_score likewise
    point_coords     (sum of K_i, 2) float64 XY; those of record i are
                     point_offsets[i]:point_offsets[i + 1]
    point_offsets    (N + 1,) int64

    Raises InputError if a mask is of another size, OutputError if the file cannot be written.
    """
    check_records(records)
    masks = [record["segmentation"] for record in records]
    by_area(masks, size)  # for its check of the sizes
    points = [np.asarray(record["point_coords"], np.float64).reshape(-1, 2) for record in records]
    arrays = {
        "area": np.array([record["area"] for record in records], np.int64),
        "bbox": np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4),
        "crop_box": np.array([record["crop_box"] for record in records], np.float64).reshape(-1, 4),
        "predicted_iou": np.array([record["predicted_iou"] for record in records], np.float64),
        "stability_score": np.array([record["stability_score"] for record in records], np.float64),
        "point_coords": np.concatenate([np.zeros((0, 2)), *points]),
        "point_offsets": np.cumsum([0, *map(len, points)]),
    }
    _write(path, (len(masks), *size), map(coco_rle.decode, masks), arrays)


def read_npz(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES
) -> dict[str, NDArray[Any]]:
    """The arrays of a file of `write_masks_npz` or `write_records_npz` by name.

    max_bytes  what all arrays together may take; more is refused before it is decompressed, because
               a small file can hold any number of zeros. Raise it for masks of many large photos

    Raises InputError, naming the file, if it cannot be read, is damaged, or lacks arrays that
    samfast writes or holds some whose shapes do not fit each other.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"{shown(path)} instead of the path of an NPZ file")
    name = os.fspath(path)
    try:
        # Not numpy.load, which leaves a damaged file open.
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            headers = {
                member.filename.removesuffix(".npy"): _header(archive, member)
                for member in archive.infolist()
            }
            _check_headers(headers)
            total = sum(each.bytes for each in headers.values())
            if total > max_bytes:
                raise InputError(
                    f"{name}: its arrays take {total} bytes, more than {max_bytes}; if you trust "
                    "the file, read it with a larger max_bytes"
                )
            return {each: _read(archive, f"{each}.npy") for each in headers}
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{name}: cannot be read: {reason}; check the path") from error
    except Exception as error:  # damaged data: zipfile, zlib and numpy raise different types
        raise InputError(f"{name}: no NPZ file, or damaged ({error}); write it again") from error


@dataclass(frozen=True)
class _Header:
    """The shape and dtype of an array, and the bytes that its values take."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Header:
    """Decompresses the beginning of a member only; ValueError if its length is another."""
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{member.filename} is of another version of NPY")
        shape, _, dtype = npy.read_array_header_1_0(file)
        header = _Header(shape, dtype)
        length = file.tell() + header.bytes
    if length != member.file_size:
        raise ValueError(f"{member.filename} has {member.file_size} bytes, not {length}")
    return header


def _check_headers(headers: Mapping[str, _Header]) -> None:
    """ValueError unless they have the arrays of one of the two kinds of files; more are allowed."""
    kind = next((kind for kind in (_MASKS, _RECORDS) if kind.keys() <= headers.keys()), None)
    if kind is None:
        raise ValueError(f"its arrays are {', '.join(headers)}")
    sizes: dict[str, int] = {}
    for name, (dtype, axes) in kind.items():
        shape = headers[name].shape
        if headers[name].dtype != dtype or len(shape) != len(axes):
            raise ValueError(f"{name} is {headers[name].dtype} of shape {shape}")
        for axis, length in zip(axes, shape, strict=True):
            wanted = int(axis) if axis.isdigit() else sizes.setdefault(axis, length)
            if length != wanted:
                raise ValueError(f"{name} is of shape {shape}, which does not fit the others")
    if sizes.get("N + 1", sizes["N"] + 1) != sizes["N"] + 1:
        raise ValueError(f"{sizes['N']} records with {sizes['N + 1']} offsets of points")


def _read(archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
    with archive.open(member) as file:
        array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return array


def _write(
    path: str | os.PathLike[str],
    shape: tuple[int, ...],
    masks: Iterable[NDArray[np.bool_]],
    arrays: Mapping[str, NDArray[Any]],
) -> None:
    """As numpy.savez_compressed, but one mask at a time: all together can take gigabytes."""
    with atomic_open(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with _member(archive, "masks") as member:
            header = {"descr": "|b1", "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(member, header)
            for mask in masks:
                member.write(mask.tobytes())
        for name, array in arrays.items():
            with _member(archive, name) as member:
                npy.write_array(member, array, allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(f"{name}.npy", "w", force_zip64=True)
