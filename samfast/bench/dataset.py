"""A data set in COCO's *instances* format: images and the masks of objects in them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfast.bench.segmentation import check_size, to_mask
from samfast.errors import DatasetError
from samfast.types import Size

LAYOUT = (
    "expected is a folder with images/ and annotations.json (COCO instances), or --images DIR with "
    "--annotations FILE. For COCO val2017 download http://images.cocodataset.org/zips/val2017.zip "
    "and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpack both, and give "
    "--images val2017 "
    "--annotations annotations/instances_val2017.json"
)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """One object's mask.

    box       XYWH in pixels as the file has it; None where it says none or one without an area
    where     names the annotation in messages
    number    its place among the file's annotations, crowds counted
    category  the name of its category, the id as text where the file names none; None without an id
    """

    segmentation: Any
    size: Size
    box: Box | None
    where: str
    number: int
    category: str | None = None

    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool; DatasetError if the segmentation is damaged."""
        return to_mask(self.segmentation, self.size, self.where)


@dataclass(frozen=True)
class AnnotatedImage:
    """An image, its size (height, width) as the annotations say, its `source` if they say one, its
    objects.
    """

    path: Path
    size: Size
    source: str | None
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class Dataset:
    """Images in the order of the annotation file.

    crowds  the crowd annotations left out
    digest  SHA-256 of the annotation file, in hexadecimal
    """

    images: tuple[AnnotatedImage, ...]
    name: str
    crowds: int = 0
    digest: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[AnnotatedImage]:
        return iter(self.images)


def open_dataset(
    path: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    annotations: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Read a data set; masks are decoded later, image by image.

    path                 a folder with images/ and annotations.json
    images, annotations  instead of path: the folder of images and the annotation file

    Annotations with `iscrowd` are left out. Raises DatasetError, which names the file and the
    entry, for whatever is missing or does not fit.
    """
    folder, file = _places(path, images, annotations)
    content, digest = _read(file)
    entries = _entries(content, "images", file)
    if not entries:
        raise DatasetError(f"{file}: 'images' is empty; there is nothing to measure")
    sizes: dict[Any, Size] = {}
    for i, entry in enumerate(entries):
        if (
            entry.get("id") is None
            or not isinstance(entry.get("file_name"), str)
            or not entry["file_name"]
        ):
            raise DatasetError(
                f"{file}: images[{i}] lacks 'id' or 'file_name'; each image needs both"
            )
        if not isinstance(entry["id"], int | str):
            raise DatasetError(
                f"{file}: images[{i}] has the id {entry['id']!r}; ids are numbers or text"
            )
        if entry["id"] in sizes:
            raise DatasetError(f"{file}: two images have the id {entry['id']!r}; ids must differ")
        height, width = entry.get("height"), entry.get("width")
        if type(height) is not int or type(width) is not int or height < 1 or width < 1:
            raise DatasetError(
                f"{file}: images[{i}] ({entry['file_name']}) lacks a usable 'height' and 'width'; "
                "both are whole numbers of pixels"
            )
        sizes[entry["id"]] = (height, width)
    objects, crowds = _objects(content, sizes, file)
    if not any(objects.values()):
        which = "every annotation is a crowd" if crowds else "its images have no annotations"
        raise DatasetError(f"{file}: {which}, so there is no mask to score; {LAYOUT}")
    missing = [
        entry["file_name"] for entry in entries if not (folder / entry["file_name"]).is_file()
    ]
    if missing:
        shown = ", ".join(missing[:3]) + (
            f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        )
        raise DatasetError(
            f"{folder}: {len(missing)} of {len(entries)} images of {file} are not there: {shown}; "
            "copy them "
            f"there, or name the folder that has them. {LAYOUT[0].upper()}{LAYOUT[1:]}"
        )
    found = tuple(
        AnnotatedImage(
            folder / entry["file_name"],
            sizes[entry["id"]],
            None if entry.get("source") is None else str(entry["source"]),
            tuple(objects[entry["id"]]),
        )
        for entry in entries
    )
    return Dataset(found, str(file), crowds, digest)


def _places(
    path: str | os.PathLike[str] | None,
    images: str | os.PathLike[str] | None,
    annotations: str | os.PathLike[str] | None,
) -> tuple[Path, Path]:
    """The folder of images and the annotation file, both there."""
    if path is not None:
        if images is not None or annotations is not None:
            raise DatasetError("give either a folder or images with annotations, not both")
        root = Path(path)
        if not root.is_dir():
            what = "that is a file" if root.exists() else "there is no such folder"
            raise DatasetError(f"{root}: {what}; {LAYOUT}")
        folder, file = root / "images", root / "annotations.json"
    elif images is None or annotations is None:
        raise DatasetError(f"no data set given; {LAYOUT}")
    else:
        folder, file = Path(images), Path(annotations)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder of images; {LAYOUT}")
    if not file.is_file():
        raise DatasetError(f"{file}: there is no such annotation file; {LAYOUT}")
    return folder, file


def _read(file: Path) -> tuple[dict[str, Any], str]:
    """What the file holds, and its SHA-256."""
    try:
        raw = file.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise DatasetError(
            f"{file}: cannot be read: {error.strerror}; check its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{file}: not JSON ({' '.join(str(error).split())}); expected are COCO instances"
        ) from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{file}: not COCO instances: a JSON object with 'images' and 'annotations' is "
            "expected, "
            f"this is a {type(content).__name__}"
        )
    return content, hashlib.sha256(raw).hexdigest()


def _entries(content: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DatasetError(f"{file}: not COCO instances: it has no list of objects '{key}'")
    return entries


def _objects(
    content: dict[str, Any], sizes: dict[Any, Size], file: Path
) -> tuple[dict[Any, list[Annotation]], int]:
    """The annotations of each image id, and how many crowds were left out."""
    objects: dict[Any, list[Annotation]] = {key: [] for key in sizes}
    names = _categories(content, file)
    crowds = 0
    for i, entry in enumerate(_entries(content, "annotations", file)):
        where = f"{file}: annotations[{i}]" + (f" (id {entry['id']})" if "id" in entry else "")
        image = entry.get("image_id")
        if not isinstance(image, int | str) or image not in sizes:
            raise DatasetError(f"{where} is of image {image!r}, which is not in 'images'")
        if entry.get("iscrowd"):
            crowds += 1
            continue
        if "segmentation" not in entry:
            raise DatasetError(
                f"{where} has no 'segmentation'; a mask is needed (of COCO's files, that of the "
                "instances)"
            )
        check_size(entry["segmentation"], sizes[image], where)
        box = _box(entry.get("bbox"), where)
        key = entry.get("category_id")
        if key is not None and not isinstance(key, int | str):
            raise DatasetError(f"{where} has the category_id {key!r}; ids are numbers or text")
        category = None if key is None else names.get(key, str(key))
        objects[image].append(
            Annotation(entry["segmentation"], sizes[image], box, where, i, category)
        )
    return objects, crowds


def _categories(content: dict[str, Any], file: Path) -> dict[Any, str]:
    """The name of each category that has one, by id; a file need not list any."""
    if content.get("categories") is None:
        return {}
    return {
        entry["id"]: entry["name"]
        for entry in _entries(content, "categories", file)
        if isinstance(entry.get("id"), int | str)
        and isinstance(entry.get("name"), str)
        and entry["name"]
    }


def _box(value: Any, where: str) -> Box | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 4
        or not all(type(n) in (int, float) for n in value)
    ):
        raise DatasetError(f"{where}: its bbox is {value!r}; it must be [x, y, width, height]")
    x, y, width, height = (float(n) for n in value)
    if not all(map(math.isfinite, (x, y, width, height))):
        raise DatasetError(f"{where}: its bbox is {value!r}; its numbers must be finite")
    return (x, y, width, height) if width > 0 and height > 0 else None
