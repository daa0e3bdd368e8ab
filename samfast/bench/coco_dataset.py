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

from samfast.errors import DatasetError, InputError, MissingExtraError
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
    number        its index among the file's annotations, crowds counted
    category      the name of its category, else its id as text; None without an id
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
        size = entry.get("height"), entry.get("width")
        if not all(type(side) is int and side > 0 for side in size):
            raise DatasetError(f"{where} ({name}) lacks 'height' and 'width' in whole pixels")
        sizes[key] = size  # type: ignore[assignment]
    objects, crowds = _objects(content, sizes, file)
    if not any(objects.values()):
        which = "every annotation is a crowd" if crowds else "its images have no annotations"
        raise DatasetError(f"{file}: {which}, so there is no mask to score; {LAYOUT}")
    missing = [name for e in entries if not (folder / (name := e["file_name"])).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DatasetError(
            f"{folder}: {len(missing)} of {len(entries)} images of {file} are missing: "
            f"{', '.join(missing[:3])}{more}; copy them there, or name another folder. {LAYOUT}"
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
    """A `segmentation` as (H, W) bool; DatasetError if it is damaged or of another size.

    segmentation  {"size": [H, W], "counts": text or numbers}, or polygons [x0, y0, x1, y1, ...]
    """
    if isinstance(segmentation, dict):
        _check_size(segmentation, size, where)
        try:
            return np.ascontiguousarray(decode(segmentation))
        except InputError as error:
            raise DatasetError(f"{where}: its run lengths are damaged: {error}") from error
    if not isinstance(segmentation, list) or not segmentation:
        raise DatasetError(
            f"{where}: its segmentation must be run lengths "
            '({"size": [H, W], "counts": ...}) or a list of polygons'
        )
    for polygon in segmentation:
        numbers = isinstance(polygon, list) and all(type(n) in (int, float) for n in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            raise DatasetError(
                f"{where}: a polygon must be a list of at least three points, [x0, y0, x1, y1, ...]"
            )
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise MissingExtraError(
            "masks as polygons need pycocotools, which is not installed: pip install pycocotools"
        ) from error
    pieces = coco.frPyObjects([[float(n) for n in polygon] for polygon in segmentation], *size)
    mask: NDArray[np.bool_] = np.ascontiguousarray(coco.decode(coco.merge(pieces))).astype(bool)
    return mask


def _check_size(segmentation: Any, size: Size, where: str) -> None:
    """DatasetError if run lengths are of another size than the image's."""
    if isinstance(segmentation, dict) and segmentation.get("size") != list(size):
        raise DatasetError(
            f"{where}: its mask's size is {segmentation.get('size')}, but its image is "
            f"{size[0]} x {size[1]} (height x width)"
        )


def _places(
    path: str | os.PathLike[str] | None,
    images: str | os.PathLike[str] | None,
    annotations: str | os.PathLike[str] | None,
) -> tuple[Path, Path]:
    """The folder of images and the annotation file; both exist."""
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


def _read(file: Path) -> tuple[Entry, str]:
    """The file's content and its SHA-256."""
    try:
        raw = file.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise DatasetError(
            f"{file}: cannot be read: {error.strerror}; check its permissions"
        ) from error
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


def _objects(
    content: Entry, sizes: dict[Any, Size], file: Path
) -> tuple[dict[Any, list[Annotation]], int]:
    """The annotations of each image id, and how many crowds were left out."""
    objects: dict[Any, list[Annotation]] = {key: [] for key in sizes}
    categories = [] if content.get("categories") is None else _entries(content, "categories", file)
    names = {e["id"]: e.get("name") for e in categories if isinstance(e.get("id"), int | str)}
    crowds = 0
    for i, entry in enumerate(_entries(content, "annotations", file)):
        where = f"{file}: annotations[{i}]" + (f" (id {entry['id']})" if "id" in entry else "")
        image, key = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image, int | str) or image not in sizes:
            raise DatasetError(f"{where} is of image {image!r}, which is not in 'images'")
        if entry.get("iscrowd"):
            crowds += 1
            continue
        if "segmentation" not in entry:
            raise DatasetError(f"{where} has no 'segmentation'; COCO's instances have one")
        if key is not None and not isinstance(key, int | str):
            raise DatasetError(f"{where} has the category_id {key!r}; ids are numbers or text")
        segmentation, size = entry["segmentation"], sizes[image]
        _check_size(segmentation, size, where)
        box = _box(entry.get("bbox"), where)
        category = None if key is None else str(names.get(key) or key)
        objects[image].append(Annotation(segmentation, size, box, where, i, category))
    return objects, crowds


def _box(value: Any, where: str) -> Box | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and all(type(n) in (int, float) for n in value)
    if not numbers or len(value) != 4 or not all(map(math.isfinite, value)):
        raise DatasetError(f"{where}: its bbox is {value!r}; it must be 4 finite numbers, XYWH")
    x, y, width, height = map(float, value)
    return (x, y, width, height) if width > 0 and height > 0 else None
