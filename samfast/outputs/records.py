"""Records of masks, with the original generator's keys: make, write as JSON, read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samfast import coco_rle
from samfast.atomic_files import atomic_write
from samfast.errors import InputError, shown
from samfast.types import Masks

RECORD_KEYS = (
    "segmentation",  # COCO RLE {"size": [H, W], "counts": str}
    "area",  # pixels
    "bbox",  # XYWH in pixels, W and H last minus first as the original's: one less than a count
    "predicted_iou",
    "point_coords",  # [[x, y], ...] the points it was prompted with; empty if there were none
    "stability_score",
    "crop_box",  # XYWH of the crop that was decoded
)

_NUMBERS = {"area": (), "predicted_iou": (), "stability_score": (), "bbox": (4,), "crop_box": (4,)}
_PLAIN = frozenset((int, float))


def records_of(
    masks: Masks,
    stability: NDArray[np.floating] | Tensor,
    points: Sequence[Any] | NDArray[Any] | Tensor | None = None,
    *,
    best: bool = True,
) -> list[dict[str, Any]]:
    """The result for one image as records with RECORD_KEYS; `crop_box` is the whole image.

    masks      N objects, M masks each, of an (H, W) image
    stability  (N, M), the IoU of each mask at a higher threshold with itself at a lower one
    points     N arrays (K_i, 2): XY of the points of each object, or None
    best       one record per object, that of the highest predicted IoU; otherwise N * M records

    Raises InputError if the numbers of objects differ, NumericsError as `Masks.verify`.

        records = samfast.outputs.records_of(results[0], torch.ones(results[0].iou.shape))
        samfast.outputs.write_records("photo.json", records)
    """
    check_result(masks)
    masks.verify()
    count, each, height, width = masks.masks.shape
    iou = masks.iou.detach().float().cpu().numpy()
    score = _numbers_of(stability, "stability scores")
    clicks: Sequence[Any] | NDArray[Any] | Tensor = [()] * count if points is None else points
    dense = isinstance(clicks, np.ndarray | Tensor) and not getattr(clicks, "is_nested", False)
    if not isinstance(clicks, Sequence) and not (dense and clicks.ndim):
        raise InputError(f"points are {shown(points)}; give a list of arrays (K, 2), one an object")
    if score.shape != (count, each) or len(clicks) != count:
        raise InputError(
            f"{count} objects of {each} masks, but stability scores of shape {score.shape} and the "
            f"points of {len(clicks)} objects; pass those of the same result"
        )
    records = []
    for index in range(count):
        for which in [int(iou[index].argmax())] if best else range(each):
            mask = coco_rle.dense_mask(masks.masks[index, which])
            records.append(
                {
                    "segmentation": coco_rle.encode(mask),
                    "area": int(np.count_nonzero(mask)),
                    "bbox": bounding_box(mask),
                    "predicted_iou": float(iou[index, which]),
                    "point_coords": _points(clicks[index]),
                    "stability_score": float(score[index, which]),
                    "crop_box": [0, 0, width, height],
                }
            )
    return records


def check_result(masks: object) -> None:
    """InputError unless this is the result for one image."""
    if not isinstance(masks, Masks):
        raise InputError(f"{shown(masks)} instead of the result for one image: results[0]")


def _numbers_of(values: Any, name: str) -> NDArray[np.float64]:
    """The values as an array; InputError for what is none."""
    try:
        if isinstance(values, Tensor):
            values = values.detach()
            values = (values.double() if values.is_floating_point() else values).cpu().numpy()
        array = np.asarray(values)
        if array.dtype.kind == "c":  # NumPy would drop the imaginary parts
            raise TypeError("complex numbers")
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{name} are {shown(values)}, not an array of numbers") from error


def check_records(records: object) -> None:
    """InputError unless this is a list of mappings."""
    listed = isinstance(records, Sequence) and not isinstance(records, str | bytes)
    if not (listed and all(isinstance(record, Mapping) for record in cast(list[Any], records))):
        raise InputError(f"{shown(records)} instead of a list of records, which are dictionaries")


def bounding_box(mask: NDArray[np.bool_]) -> list[int]:
    """XYWH of an (H, W) mask, W and H last minus first as the original's; zeros if empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return [0, 0, 0, 0]
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left, int(rows[-1]) - top]


def write_records(
    path: str | os.PathLike[str],
    records: Sequence[Mapping[str, Any]],
    *,
    check_texts: bool = True,
) -> None:
    """Write a JSON list with one record per line; masks become COCO RLE, extra keys are kept.

    check_texts  whether masks that are COCO's text already fill their images; False for those that
                 the engine has just made, where reading them takes as long as writing the file

    Raises InputError, naming the record, if one lacks a key or holds a value that JSON cannot (NaN,
    infinity); OutputError if the file cannot be written.
    """
    check_records(records)
    have_text = [_has_text(each) for each in records]
    texts = [each["segmentation"] for each, text in zip(records, have_text, strict=True) if text]
    sound = not check_texts or coco_rle.all_sound(texts)
    lines = [
        _line(record, f"record {index}", has_text=text, sound=sound)
        for index, (record, text) in enumerate(zip(records, have_text, strict=True))
    ]
    atomic_write(path, ("[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n").encode())


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a JSON file; `samfast.outputs.decode` makes a mask of their `segmentation`.

    Raises InputError, naming the file and the record, if it cannot be read or holds anything else.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            loaded = json.loads(file.read())
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON ({error}); write it again") from error
    if not isinstance(loaded, list):
        kind = type(loaded).__name__
        raise InputError(
            f"{name}: a {kind}, not a list of records; name a file of `samfast segment`"
        )
    for index, record in enumerate(loaded):
        _check(record, f"{name}: record {index}")
    return loaded


def _line(record: Mapping[str, Any], name: str, *, has_text: bool, sound: bool) -> str:
    """The record as JSON, checked.

    has_text  its mask is COCO's text already
    sound     all texts among the records are known to be right
    """
    if "segmentation" in record and not has_text:
        try:
            record = {**record, "segmentation": coco_rle.encode(record["segmentation"])}
        except InputError as error:
            raise InputError(f"{name}: segmentation: {error}") from error
    line = json_line(record, name)
    if not (has_text and sound and _is_plain(record)):
        _check(json.loads(line), name)
    return line


def _has_text(record: Mapping[str, Any]) -> bool:
    """Whether a record's mask is COCO's text already, which `_check` reads like that of a file."""
    mask = record.get("segmentation")
    return (
        isinstance(mask, Mapping)
        and set(mask) == {"size", "counts"}
        and type(mask["counts"]) is str
    )


def _is_plain(record: Mapping[str, Any]) -> bool:
    """Whether all that a record must have besides its mask is int, float or a list of these.

    `_check` accepts these once JSON has, which refuses NaN and infinity.
    """
    points = record.get("point_coords")
    return (
        all(_are_plain(record.get(key), shape) for key, shape in _NUMBERS.items())
        and type(points) is list
        and all(_are_plain(point, (2,)) for point in points)
    )


def _are_plain(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return type(value) in _PLAIN
    return type(value) is list and len(value) == shape[0] and _PLAIN.issuperset(map(type, value))


def json_line(value: Any, name: str) -> str:
    """The value as JSON; InputError, with its name, if it holds what JSON cannot: NaN, infinity."""
    try:
        return _JSON.encode(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: JSON cannot hold it ({error}); leave such values out") from error


def _plain(value: object) -> object:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is neither number, text nor list")


_JSON = json.JSONEncoder(allow_nan=False, default=_plain)


def _check(record: object, name: str) -> None:
    keys = ", ".join(RECORD_KEYS)
    if not isinstance(record, dict):
        raise InputError(f"{name}: a {type(record).__name__}, not a record with {keys}")
    missing = [key for key in RECORD_KEYS if key not in record]
    if missing:
        raise InputError(f"{name}: lacks {', '.join(missing)}; a record has {keys}")
    if not isinstance(record["segmentation"], dict):
        raise InputError(f"{name}: segmentation is no COCO RLE")
    try:
        coco_rle.run_lengths(record["segmentation"])
    except InputError as error:
        raise InputError(f"{name}: segmentation: {error}") from error
    for key, shape in _NUMBERS.items():
        if not _is_numbers(record[key], shape):
            kind = "4 numbers" if shape else "a number"
            raise InputError(f"{name}: {key} is {record[key]!r}; it must be {kind}")
    points = record["point_coords"]
    if not isinstance(points, list) or not all(_is_numbers(point, (2,)) for point in points):
        raise InputError(f"{name}: point_coords is {points!r}; it must be a list of [x, y]")


def _is_numbers(value: object, shape: tuple[int, ...]) -> bool:
    if shape:
        items = value if isinstance(value, list) else []
        return len(items) == shape[0] and all(_is_numbers(item, ()) for item in items)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _points(points: Any) -> list[list[float]]:
    array = _numbers_of(points, "points")
    if array.size % 2:
        raise InputError(f"points are {shown(points)}; give arrays (K, 2), XY, one an object")
    xy: list[list[float]] = array.reshape(-1, 2).tolist()
    return xy
