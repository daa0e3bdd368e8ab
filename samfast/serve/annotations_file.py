"""A COCO instances file that people edit, photo by photo, from several tabs and programs.

The file on the disk is the truth. It is read again when it has changed, a photo's annotations are
replaced only if they are still those that the editor saw, and the file is written whole. What the
page does not know, keys and whole sections, stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from filelock import FileLock, Timeout

from samfast import coco_rle
from samfast.atomic_files import atomic_open
from samfast.errors import DatasetError, InputError
from samfast.types import Size

MAX_KEY = 80
"""Characters of an annotation's `uuid`."""

LOCK_SECONDS = 20.0
"""So long another process may write the file."""


class RevisionError(Exception):
    """The photo's annotations are no longer those that the editor saw; `current` are the ones."""

    def __init__(self, current: PhotoAnnotations) -> None:
        super().__init__("the annotations of this photo have been changed meanwhile")
        self.current = current


@dataclass(frozen=True)
class PhotoAnnotations:
    """What the file says of one photo.

    revision     changes with the annotations
    annotations  as the page has them: key, id, category {"id", "name"}, segmentation as RLE, name,
                 predicted_iou, points, labels, box
    categories   of the whole file: {"id", "name", "color"}, color "#rrggbb" or None
    kept_aside   number of annotations that are no masks of this size, and stay in the file
    """

    revision: str
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    kept_aside: int

    def as_json(self) -> dict[str, Any]:
        """The answer of the HTTP interface."""
        return {
            "revision": self.revision,
            "annotations": self.annotations,
            "categories": self.categories,
            "kept_aside": self.kept_aside,
        }


@dataclass
class _Dataset:
    """The file's contents; the annotations of each image apart, with their text."""

    sections: dict[str, Any] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    texts: dict[int, list[str]] = field(default_factory=dict)
    categories: list[dict[str, Any]] = field(default_factory=list)


class AnnotationsFile:
    """The COCO instances file at `path`, which need not be there yet.

    Raises DatasetError, here and whenever the file is read, if it holds anything else: a damaged
    file is never written over. Safe to use from several threads and processes.

    >>> file = AnnotationsFile(Path("photos/annotations.json"))
    >>> file.photo("a.jpg", size=(480, 640)).annotations
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._between = FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS)
        self._seen: tuple[int, int, int] | None = None
        self._dataset = _Dataset()
        with self._lock:
            self._refresh()

    def counts(self) -> dict[str, int]:
        """The number of annotations of each photo that has any, by its file name."""
        with self._lock:
            dataset = self._refresh()
            return {
                name: len(dataset.annotations[image["id"]])
                for name, image in dataset.images.items()
                if dataset.annotations.get(image["id"])
            }

    def photo(self, name: str, size: Size) -> PhotoAnnotations:
        """What the file says of the photo of that name, which is (H, W) pixels large."""
        with self._lock:
            return _photo_annotations(self._refresh(), name, size)

    def text(self) -> bytes:
        """The whole file, as it would be written."""
        with self._lock:
            return _text(self._refresh())

    def save(
        self,
        name: str,
        size: Size,
        revision: str,
        annotations: Sequence[Mapping[str, Any]],
        categories: Sequence[Mapping[str, Any]] = (),
    ) -> PhotoAnnotations:
        """Replace the annotations of a photo, and return what the file says of it then.

        revision     of the annotations that the editor saw
        annotations  as PhotoAnnotations has them, each with a `key`; `category` may be {"name"} or
                     {"name", "color"} for a new one
        categories   names and colours that the editor has changed

        Annotations that the page could not show stay. RevisionError if others have changed the
        photo's annotations, InputError for what is no annotation of this photo, DatasetError if the
        file has been damaged, OutputError if it cannot be written.
        """
        with self._lock, _locked(self._between, self.path):
            dataset = self._refresh()
            current = _photo_annotations(dataset, name, size)
            if current.revision != revision:
                raise RevisionError(current)
            changed = _Edit(dataset, name, size).apply(annotations, categories)
            data = _text(changed)
            with atomic_open(self.path) as file:
                file.write(data)
                file.flush()
                # So that the file is whole after a failure of power too.
                os.fsync(file.fileno())
            self._dataset, self._seen = changed, _signature(self.path)
            return _photo_annotations(changed, name, size)

    def _refresh(self) -> _Dataset:
        """The contents, read again if the file has changed."""
        signature = _signature(self.path)
        if signature is None:
            self._dataset, self._seen = _Dataset(), None
        elif signature != self._seen:
            self._dataset, self._seen = _read(self.path), signature
        return self._dataset


class _locked:  # noqa: N801 - reads as a word in a `with`
    """Hold a lock between processes; DatasetError that says who is in the way."""

    def __init__(self, lock: FileLock, path: Path) -> None:
        self._lock, self._path = lock, path

    def __enter__(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise DatasetError(
                f"{self._path}: another program has been writing it for {LOCK_SECONDS:g} s; try "
                "again"
            ) from None
        except OSError as error:
            raise DatasetError(
                f"{self._path}: cannot be written: {error.strerror}; allow writing to "
                f"{self._path.parent}"
            ) from error

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


# ------------------------------------------------------------------------------------ the file


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Changes with the file; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> _Dataset:
    try:
        loaded = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}); mend it or move it away") from error
    remedy = "; mend it, move it away, or name another file with --annotations"
    sections = ("images", "annotations", "categories")
    if not isinstance(loaded, dict) or not all(
        isinstance(loaded.get(name, []), list)
        and all(isinstance(entry, dict) for entry in loaded.get(name, []))
        for name in sections
    ):
        raise DatasetError(f"{path}: not a COCO instances file{remedy}")
    for name in sections:
        ids = [entry.get("id") for entry in loaded.get(name, [])]
        if not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
            raise DatasetError(f"{path}: {name} without whole numbers as ids{remedy}")
        if len(set(ids)) != len(ids):
            raise DatasetError(f"{path}: {name} of which two have one id{remedy}")
    dataset = _Dataset(
        sections={name: value for name, value in loaded.items() if name not in sections},
        categories=loaded.get("categories", []),
    )
    for image in loaded.get("images", []):
        name = image.get("file_name")
        if not isinstance(name, str) or name in dataset.images:
            raise DatasetError(f"{path}: images without a file_name, or two with one{remedy}")
        dataset.images[name] = image
    for annotation in loaded.get("annotations", []):
        image_id = annotation.get("image_id")
        if not isinstance(image_id, int):
            raise DatasetError(f"{path}: an annotation without image_id{remedy}")
        dataset.annotations.setdefault(image_id, []).append(annotation)
    for image_id, entries in dataset.annotations.items():
        dataset.texts[image_id] = [json.dumps(entry) for entry in entries]
    return dataset


def _text(dataset: _Dataset) -> bytes:
    """The file, with a line for each image, annotation and category."""
    sections = [
        f"{json.dumps(name)}: {json.dumps(value)}" for name, value in dataset.sections.items()
    ]
    lines = {
        "images": [json.dumps(image) for image in dataset.images.values()],
        "annotations": [line for texts in dataset.texts.values() for line in texts],
        "categories": [json.dumps(category) for category in dataset.categories],
    }
    for name, entries in lines.items():
        body = "[\n" + ",\n".join(entries) + "\n]" if entries else "[]"
        sections.append(f"{json.dumps(name)}: {body}")
    return ("{" + ",\n".join(sections) + "}\n").encode()


# ------------------------------------------------------------------- annotations for the page


def _photo_annotations(dataset: _Dataset, name: str, size: Size) -> PhotoAnnotations:
    image = dataset.images.get(name)
    entries = [] if image is None else dataset.annotations.get(image["id"], [])
    names = {category["id"]: str(category.get("name", "")) for category in dataset.categories}
    shown = []
    for key, entry in zip(_keys(entries), entries, strict=True):
        rle = _mask_of(entry, size)
        if rle is not None:
            shown.append(_shown(key, entry, rle, names))
    categories = [
        {"id": number, "name": text or f"category {number}", "color": _colour(category)}
        for category, (number, text) in zip(dataset.categories, names.items(), strict=True)
    ]
    return PhotoAnnotations(_revision(entries), shown, categories, len(entries) - len(shown))


def _revision(entries: Sequence[Mapping[str, Any]]) -> str:
    text = json.dumps(entries, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _shown(
    key: str, entry: Mapping[str, Any], rle: dict[str, Any], names: Mapping[Any, str]
) -> dict[str, Any]:
    score = entry.get("score")
    category = entry.get("category_id")
    points, labels = entry.get("point_coords"), entry.get("point_labels")
    prompted = _are_clicks(points, labels)
    box = entry.get("input_box")
    return {
        "key": key,
        "id": entry["id"],
        "category": {"id": category, "name": names.get(category, "object")},
        "segmentation": rle,
        "name": entry["name"] if isinstance(entry.get("name"), str) else None,
        "predicted_iou": score if _is_number(score) else None,
        "points": points if prompted else [],
        "labels": labels if prompted else [],
        "box": box if _is_numbers(box, 4) else None,
    }


def _keys(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What names each annotation before it has an id, and after; all of a photo's differ.

    Programs copy annotations with all their keys: a second one of the same `uuid` goes by its id.
    """
    keys: list[str] = []
    taken: set[str] = set()
    for entry in entries:
        key = entry.get("uuid")
        if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY or key in taken:
            key = f"id {entry['id']}"
        taken.add(key)
        keys.append(key)
    return keys


def _mask_of(entry: Mapping[str, Any], size: Size) -> dict[str, Any] | None:
    """The annotation's mask as RLE; None if it has none of that size, or is of a crowd."""
    from pycocotools import mask as coco

    segmentation = entry.get("segmentation")
    if entry.get("iscrowd"):
        return None
    try:
        if isinstance(segmentation, list):
            polygons = [ring for ring in segmentation if _is_numbers(ring) and len(ring) >= 6]
            if not polygons or len(polygons) != len(segmentation):
                return None
            merged = coco.merge(coco.frPyObjects(polygons, *size))
            return coco_rle.encode(merged)
        if isinstance(segmentation, Mapping) and coco_rle.size_of(segmentation) == size:
            return coco_rle.encode(segmentation)
    except (InputError, ValueError, TypeError):
        return None
    return None


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number that JSON may hold; files may have NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_numbers(value: object, count: int | None = None) -> TypeGuard[list[float]]:
    return (
        isinstance(value, list)
        and (count is None or len(value) == count)
        and all(_is_number(each) for each in value)
    )


def _are_clicks(points: object, labels: object) -> bool:
    """Whether these are points with a label each, 0 or 1."""
    return (
        isinstance(points, list)
        and all(_is_numbers(point, 2) for point in points)
        and _is_numbers(labels, len(points))
        and all(label in (0, 1) for label in labels)
    )


def _colour(category: Mapping[str, Any]) -> str | None:
    """A category's colour as "#rrggbb"; COCO's panoptic files have [r, g, b]."""
    colour = category.get("color")
    if isinstance(colour, str) and re.fullmatch("#[0-9a-fA-F]{6}", colour):
        return colour.lower()
    if _is_numbers(colour, 3) and all(isinstance(c, int) and 0 <= c < 256 for c in colour):
        return "#" + "".join(f"{channel:02x}" for channel in colour)
    return None


# -------------------------------------------------------------------------------------- an edit


class _Edit:
    """New annotations of one photo, in a copy of the data set that shares all else."""

    def __init__(self, dataset: _Dataset, name: str, size: Size) -> None:
        self._size = size
        self._next_id = 1 + max(
            (entry["id"] for entries in dataset.annotations.values() for entry in entries),
            default=0,
        )
        self._dataset = _Dataset(
            sections=dataset.sections,
            images=dict(dataset.images),
            annotations=dict(dataset.annotations),
            texts=dict(dataset.texts),
            categories=list(dataset.categories),
        )
        images = self._dataset.images
        if name not in images:
            number = 1 + max((image["id"] for image in images.values()), default=0)
            height, width = size
            images[name] = {"id": number, "file_name": name, "width": width, "height": height}
        self._image_id: int = images[name]["id"]

    def apply(
        self, annotations: Sequence[Mapping[str, Any]], categories: Sequence[Mapping[str, Any]]
    ) -> _Dataset:
        """The data set after the edit."""
        for change in categories:
            self._change_category(change)
        old = self._dataset.annotations.get(self._image_id, [])
        by_key = dict(zip(_keys(old), old, strict=True))
        masks = {key: _mask_of(entry, self._size) for key, entry in by_key.items()}
        taken = {key for key, mask in masks.items() if mask is None}
        entries = [entry for key, entry in by_key.items() if key in taken]
        for each in annotations:
            key = str(each["key"])
            if key in taken:
                raise InputError(f"two annotations have the key {key!r}")
            taken.add(key)
            entries.append(self._entry(each, by_key.get(key), masks.get(key)))
        self._dataset.annotations[self._image_id] = entries
        self._dataset.texts[self._image_id] = [json.dumps(entry) for entry in entries]
        return self._dataset

    def _entry(
        self,
        given: Mapping[str, Any],
        old: Mapping[str, Any] | None,
        old_mask: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """An annotation of the file. One whose pixels are the same keeps its polygons."""
        if old is None:
            entry: dict[str, Any] = {"id": self._next_id, "image_id": self._image_id}
            self._next_id += 1
        else:
            entry = dict(old)
        entry["category_id"] = self._category(given["category"])
        mask = coco_rle.encode(given["segmentation"])
        if coco_rle.size_of(mask) != self._size:
            raise InputError(
                f"a mask of {mask['size']} (H x W) for a photo of {list(self._size)}; reload it"
            )
        if mask != old_mask:
            if not coco_rle.area_of(mask):
                raise InputError("an empty mask; delete the object instead")
            entry["segmentation"] = mask
            entry["area"] = coco_rle.area_of(mask)
            entry["bbox"] = coco_rle.bounding_box(mask)
            entry["iscrowd"] = 0
        optional = {
            "name": given.get("name") or None,
            "score": given.get("predicted_iou"),
            "point_coords": given.get("points") or None,
            "point_labels": given.get("labels") or None,
            "input_box": given.get("box"),
        }
        for key, value in optional.items():
            if value is not None:
                entry[key] = value
            # What the page could not use of an unchanged mask stays.
            elif key == "name" or mask != old_mask:
                entry.pop(key, None)
        if old is None:
            entry["uuid"] = given["key"]
        return entry

    def _category(self, given: Mapping[str, Any]) -> int:
        """The id of a category, which is made if it is new."""
        known = self._dataset.categories
        if given.get("id") is not None:
            if all(category["id"] != given["id"] for category in known):
                raise InputError(f"category {given['id']} is not in the file any more; reload")
            return int(given["id"])
        name = str(given["name"])
        for category in known:
            if category.get("name") == name:
                return int(category["id"])
        made: dict[str, Any] = {
            "id": 1 + max((category["id"] for category in known), default=0),
            "name": name,
            "supercategory": name,
        }
        if given.get("color"):
            made["color"] = given["color"]
        known.append(made)
        return int(made["id"])

    def _change_category(self, change: Mapping[str, Any]) -> None:
        categories = self._dataset.categories
        for index, category in enumerate(categories):
            if category["id"] == change["id"]:
                categories[index] = {**category, "name": str(change["name"])}
                # An unchanged colour keeps its form.
                if change.get("color") and change["color"] != _colour(category):
                    categories[index]["color"] = change["color"]
