"""A data set in COCO's instances format: images and the masks of objects in them."""

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

from samfast.errors import DatasetError, InputError
from samfast.outputs import decode
from samfast.types import Size

LAYOUT = (
    "expected is a folder with images/ and annotations.json (COCO instances), or --images DIR with "
    "--annotations FILE. For COCO val2017 download http://images.cocodataset.org/zips/val2017.zip "
    "and http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpack both, and "
    "give --images val2017 --annotations annotations/instances_val2017.json"
)

Box = tuple[float, float, float, float]
Entry = dict[str, Any]


@dataclass(frozen=True)
class Annotation:
    """One object's mask.

    segmentation  as in the file: run lengths, or a list of polygons
    size          (height, width) of the image
    box           XYWH in pixels; None where the file has none or one without an area
    where         names the annotation in messages
    category      the name of its category, else its id as text; None without an id
    """

    segmentation: Any
    size: Size
    box: Box | None
    where: str
    category: str | None = None

    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool; DatasetError if the segmentation is damaged."""
        return to_mask(self.segmentation, self.size, self.where)


@dataclass(frozen=True)
class AnnotatedImage:
    """An image, its (height, width) and `source` as the annotations have them, and its objects."""

    path: Path
    size: Size
    source: str | None
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class Dataset:
    """Images in the order of the annotation file, whose SHA-256 is `digest`."""

    images: tuple[AnnotatedImage, ...]
    name: str
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
    entry, for what is missing or does not fit.
    """
    folder, file = _places(path, images, annotations)
    content, digest = _read(file)
    entries = _entries(content, "images", file)
    if not entries:
        raise DatasetError(f"{file}: 'images' is empty; there is nothing to measure")
    sizes: dict[Any, Size] = {}
    for i, entry in enumerate(entries):
        where, name, key = f"{file}: images[{i}]", entry.get("file_name"), entry.get("id")
        if not isinstance(key, int | str) or not isinstance(name, str) or not name:
            raise DatasetError(f"{where} lacks 'id' or 'file_name'; ids are numbers or text")
        if key in sizes:
            raise DatasetError(f"{file}: two images have the id {key!r}; ids must differ")
        size: Any = entry.get("height"), entry.get("width")
        if not all(type(side) is int and side > 0 for side in size):
            raise DatasetError(f"{where} ({name}) lacks 'height' and 'width' in whole pixels")
        sizes[key] = size
    objects = _objects(content, sizes, file)
    if not any(objects.values()):
        raise DatasetError(
            f"{file}: its images have no annotations, or every annotation is a crowd, so there is "
            f"no mask to score; {LAYOUT}"
        )
    missing = [name for e in entries if not (folder / (name := e["file_name"])).is_file()]
    if missing:
        raise DatasetError(
            f"{folder}: {len(missing)} of {len(entries)} images of {file} are missing: "
            f"{', '.join(missing[:3])}; copy them there, or name another folder. {LAYOUT}"
        )
    annotated = tuple(
        AnnotatedImage(
            folder / entry["file_name"],
            sizes[entry["id"]],
            None if entry.get("source") is None else str(entry["source"]),
            tuple(objects[entry["id"]]),
        )
        for entry in entries
    )
    return Dataset(annotated, str(file), digest)


def to_mask(segmentation: Any, size: Size, where: str) -> NDArray[np.bool_]:
    """A `segmentation` as (H, W) bool; DatasetError if it is damaged.

    segmentation  {"size": [H, W], "counts": text or numbers}, or polygons [x0, y0, x1, y1, ...]
    """
    if isinstance(segmentation, dict):
        try:
            return np.ascontiguousarray(decode(segmentation))
        except InputError as error:
            raise DatasetError(f"{where}: its run lengths are damaged: {error}") from error
    polygons = segmentation if isinstance(segmentation, list) else []
    if not polygons or not all(
        _is_finite(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons
    ):
        raise DatasetError(
            f'{where}: its segmentation must be run lengths ({{"size": [H, W], "counts": ...}}) or '
            "a list of polygons [x0, y0, x1, y1, ...] of at least three points"
        )
    from pycocotools import mask as coco

    pieces = coco.frPyObjects([[float(n) for n in polygon] for polygon in polygons], *size)
    mask: NDArray[np.bool_] = np.ascontiguousarray(coco.decode(coco.merge(pieces))).astype(bool)
    return mask


def _places(
    path: str | os.PathLike[str] | None,
    images: str | os.PathLike[str] | None,
    annotations: str | os.PathLike[str] | None,
) -> tuple[Path, Path]:
    """The folder of images and the annotation file; both exist."""
    if path is not None:
        if images is not None or annotations is not None:
            raise DatasetError("give either a folder or images with annotations, not both")
        if not Path(path).is_dir():
            raise DatasetError(f"{path}: there is no such folder; {LAYOUT}")
        images, annotations = Path(path) / "images", Path(path) / "annotations.json"
    if images is None or annotations is None:
        raise DatasetError(f"no data set given; {LAYOUT}")
    folder, file = Path(images), Path(annotations)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder of images; {LAYOUT}")
    if not file.is_file():
        raise DatasetError(f"{file}: there is no such annotation file; {LAYOUT}")
    return folder, file


def _read(file: Path) -> tuple[Entry, str]:
    """The file's content and its SHA-256."""
    try:
        raw = file.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not JSON ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file}: not COCO instances: it is a {type(content).__name__}")
    return content, hashlib.sha256(raw).hexdigest()


def _entries(content: Entry, key: str, file: Path) -> list[Entry]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DatasetError(f"{file}: not COCO instances: it has no list of objects '{key}'")
    return entries


def _objects(content: Entry, sizes: dict[Any, Size], file: Path) -> dict[Any, list[Annotation]]:
    """The annotations of each image id, without crowds."""
    objects: dict[Any, list[Annotation]] = {key: [] for key in sizes}
    categories = [] if content.get("categories") is None else _entries(content, "categories", file)
    names = {e["id"]: e.get("name") for e in categories if isinstance(e.get("id"), int | str)}
    for i, entry in enumerate(_entries(content, "annotations", file)):
        where = f"{file}: annotations[{i}]" + (f" (id {entry['id']})" if "id" in entry else "")
        image, key, box = entry.get("image_id"), entry.get("category_id"), entry.get("bbox")
        if not isinstance(image, int | str) or image not in sizes:
            raise DatasetError(f"{where} is of image {image!r}, which is not in 'images'")
        if entry.get("iscrowd"):
            continue
        if "segmentation" not in entry:
            raise DatasetError(f"{where} has no 'segmentation'; COCO's instances have one")
        if key is not None and not isinstance(key, int | str):
            raise DatasetError(f"{where} has the category_id {key!r}; ids are numbers or text")
        segmentation, size = entry["segmentation"], sizes[image]
        if isinstance(segmentation, dict) and segmentation.get("size") != list(size):
            raise DatasetError(
                f"{where}: its mask's size is {segmentation.get('size')}, but its image is "
                f"{size[0]} x {size[1]} (height x width)"
            )
        if box is not None and not (_is_finite(box) and len(box) == 4):
            raise DatasetError(f"{where}: its bbox is {box!r}; it must be 4 finite numbers, XYWH")
        if box is not None:
            box = tuple(map(float, box)) if min(box[2:]) > 0 else None
        category = None if key is None else str(names.get(key) or key)
        objects[image].append(Annotation(segmentation, size, box, where, category))
    return objects


def _is_finite(numbers: Any) -> bool:
    """Whether this is a list of finite numbers."""
    return isinstance(numbers, list) and all(
        type(number) in (int, float) and math.isfinite(number) for number in numbers
    )
