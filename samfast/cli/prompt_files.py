"""`--prompts FILE`: the objects of each image, from CSV, JSON or COCO instances."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from samfast.cli.console import CommandLineError
from samfast.cli.image_files import ImageFile
from samfast.prompted_masks.prompted_objects import Box, Objects, Point, PromptedObject

COLUMNS = ("image", "object", "x", "y", "label", "x0", "y0", "x1", "y1", "category")

KINDS = ("box", "point", "both")
"""What of a COCO annotation can prompt."""

HELP = """\
  A file of --prompts has the objects of each image, in pixels of the image as displayed:
  .csv   columns image and x, y, label for a click, or x0, y0, x1, y1 for a box. Each row is an
         object; rows of an image with the same value in the column object are one. A column
         category names classes
  .json  {"photo.jpg": [{"points": [[x, y], ...], "labels": [1, ...], "box": [x0, y0, x1, y1],
         "category": "dog"}, ...]}, of which points, labels, box and category may be left out
  .json  COCO instances: the boxes of its annotations, without crowds. Records and the file of
         --coco keep the ids of images, annotations and categories
  Images are named by their path or the end of it that no other image has, such as the file name.
  Images without an entry are skipped."""


OBJECT = "object"
"""The category of objects that have none."""


@dataclass(frozen=True)
class Prompting:
    """The objects of each image that has prompts.

    image_ids   of images, where the prompts came with ids
    categories  with id and name, as COCO has them; empty: there are none
    """

    objects: Mapping[ImageFile, Objects]
    image_ids: Mapping[ImageFile, Any] = field(default_factory=dict)
    categories: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class PromptFile:
    """The prompts of many images.

    objects     of each image, by the name that the file gives it
    image_ids   of each image, where the file has ids
    categories  with id and name, as COCO has them
    """

    path: Path
    objects: Mapping[str, Objects]
    categories: Sequence[Mapping[str, Any]] = ()
    image_ids: Mapping[str, Any] = field(default_factory=dict)

    def names_of(self, keys: Sequence[str]) -> dict[str, str]:
        """What the prompts call each of the images, of those that they name.

        keys  paths with slashes; an image's name is its path, or an end of it that no other has
        """
        plain = {PurePosixPath(name.replace("\\", "/")).as_posix(): name for name in self.objects}
        names = {key: plain[key] for key in keys if key in plain}
        unnamed = [key for key in keys if key not in names]
        # An end of a path names an image only if no other image has it, and none is called so.
        counts = Counter(end for key in (keys if unnamed else ()) for end in _key_ends(key))
        for key in unnamed:
            end = next((e for e in _key_ends(key) if counts[e] == 1 and e in plain), None)
            if end is not None:
                names[key] = plain[end]
        return {key: names[key] for key in keys if key in names}

    def of(self, files: Sequence[ImageFile]) -> Prompting:
        """The prompts of the files that have any."""
        names = self._names(files)
        return Prompting(
            {file: self.objects[name] for file, name in names.items()},
            {file: self.image_ids[name] for file, name in names.items() if name in self.image_ids},
            self.categories,
        )

    def _names(self, files: Sequence[ImageFile]) -> dict[ImageFile, str]:
        """What the prompts call each file that they name.

        That is its path, its path below the folder of all images, or an end of its path, such as
        its file name, that no other file has.
        """
        plain = {PurePosixPath(name.replace("\\", "/")).as_posix(): name for name in self.objects}
        ends = {file: _ends(file.path.absolute()) for file in files}
        counts = Counter(end for each in ends.values() for end in each)
        names = {}
        for file in files:
            keys = [file.path.as_posix(), file.name]
            keys += [end for end in ends[file] if counts[end] == 1]
            key = next((key for key in keys if key in plain), None)
            if key is not None:
                names[file] = plain[key]
        return names


def _ends(path: Path) -> list[str]:
    """The path, and what remains of it without its first folders, down to its file name."""
    return [Path(*path.parts[start:]).as_posix() for start in range(len(path.parts))]


def _key_ends(key: str) -> list[str]:
    """What remains of a path without its first folders, down to its file name."""
    parts = key.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def read_prompts(path: Path, kind: str = "box") -> PromptFile:
    """The prompts in a file; CommandLineError, with the line or entry, if it is wrong.

    kind  of KINDS: what of COCO annotations prompts
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise CommandLineError(f"--prompts {path}: cannot be read: {reason}") from None
    if path.suffix.lower() == ".csv":
        return _with_categories(path, _from_csv(path, text))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"neither CSV (name it .csv) nor JSON: {error}") from None
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _from_coco(path, content, kind)
    return _with_categories(path, _from_json(path, content))


_Named = dict[str, list[tuple[PromptedObject, str | None]]]
"""For each image its objects and the names of their categories."""


def _from_csv(path: Path, text: str) -> _Named:
    table = csv.DictReader(io.StringIO(text, newline=""))
    try:
        return _from_rows(path, table)
    except csv.Error as error:
        raise _wrong(path, f"line {table.line_num}: {error}") from None


def _from_rows(path: Path, table: csv.DictReader[str]) -> _Named:
    unknown = [name for name in table.fieldnames or () if name not in COLUMNS]
    if "image" not in (table.fieldnames or ()) or unknown:
        raise _wrong(
            path, f"its first line must name columns out of {', '.join(COLUMNS)}, image among them"
        )
    rows: dict[tuple[str, Any], list[tuple[str, dict[str, str]]]] = {}
    for row in table:
        where = f"line {table.line_num}"
        if None in row or None in row.values():
            raise _wrong(path, f"{where} has another number of columns than the first line")
        # Without a number of its own, a row is an object.
        number: Any = row.get("object") or table.line_num, bool(row.get("object"))
        rows.setdefault((row["image"], number), []).append((where, row))
    named: _Named = {}
    for (image, _), lines in rows.items():
        points, boxes, category = [], [], None
        for where, row in lines:
            point, box = _row_prompts(path, where, row)
            points += point
            boxes += box
            category = row.get("category") or category
        if len(boxes) > 1:
            raise _wrong(path, f"{lines[-1][0]}: an object has one box (number it otherwise)")
        prompted = PromptedObject(tuple(points), boxes[0] if boxes else None)
        named.setdefault(image, []).append((prompted, category))
    return named


def _row_prompts(path: Path, where: str, row: Mapping[str, str]) -> tuple[list[Point], list[Box]]:
    """The click and the box of a row, each if it has one."""
    click = [row.get(name) or "" for name in ("x", "y")]
    corners = [row.get(name) or "" for name in ("x0", "y0", "x1", "y1")]
    points, boxes = [], []
    if any(click):
        x, y = _numbers(path, where, click, 2)
        points.append((x, y, _label(path, where, row.get("label") or 1)))
    if any(corners):
        boxes.append(_box(path, where, corners))
    if not points and not boxes:
        raise _wrong(path, f"{where} has neither x and y nor x0, y0, x1 and y1")
    return points, boxes


def _from_json(path: Path, content: Any) -> _Named:
    if not isinstance(content, dict):
        raise _wrong(path, 'neither COCO instances nor {"photo.jpg": [objects]}')
    named: _Named = {}
    for image, entries in content.items():
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise _wrong(path, f"{image}: its value must be a list of objects")
        named[image] = [
            _json_object(path, f"{image}: object {index}", entry)
            for index, entry in enumerate(entries)
        ]
    return named


def _json_object(
    path: Path, where: str, entry: Mapping[str, Any]
) -> tuple[PromptedObject, str | None]:
    unknown = [key for key in entry if key not in ("points", "labels", "box", "category")]
    if unknown:
        raise _wrong(path, f"{where} has {unknown[0]!r}; it may have points, labels, box, category")
    points, box = entry.get("points") or [], entry.get("box")
    labels = entry.get("labels") or [1] * len(points)
    if not isinstance(points, list) or not isinstance(labels, list) or len(points) != len(labels):
        raise _wrong(path, f"{where} has points without as many labels")
    if not points and box is None:
        raise _wrong(path, f"{where} has neither points nor a box")
    clicks = []
    for point, label in zip(points, labels, strict=True):
        x, y = _numbers(path, where, point, 2)
        clicks.append((x, y, _label(path, where, label)))
    corners = None if box is None else _box(path, where, box)
    category = entry.get("category")
    return PromptedObject(tuple(clicks), corners), None if category is None else str(category)


def _with_categories(path: Path, named: _Named) -> PromptFile:
    """Number the categories by name, from 1; objects without one are of the category "object"."""
    names = sorted({name or OBJECT for each in named.values() for _, name in each})
    numbers = {name: number for number, name in enumerate(names, start=1)}
    objects = {
        image: tuple(
            PromptedObject(each.points, each.box, numbers[name or OBJECT]) for each, name in pairs
        )
        for image, pairs in named.items()
    }
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return PromptFile(path, objects, categories)


def _from_coco(path: Path, content: Mapping[str, Any], kind: str) -> PromptFile:
    images = _by_id(path, content, "images")
    names = {key: str(image.get("file_name")) for key, image in images.items()}
    if len(set(names.values())) < len(names):
        raise _wrong(path, "two of its images have the same file_name, or none")
    objects: dict[str, list[PromptedObject]] = {name: [] for name in names.values()}
    for key, entry in _by_id(path, content, "annotations").items():
        where = f"annotation {key}"
        if entry.get("image_id") not in names:
            raise _wrong(path, f"{where} has no image_id that is among the images")
        if not entry.get("iscrowd"):
            box: Box | None = None
            points: tuple[Point, ...] = ()
            if kind != "point":
                x, y, width, height = _numbers(path, where, entry.get("bbox"), 4)
                box = _box(path, where, (x, y, x + width, y + height))
            if kind != "box":
                points = _coco_points(path, where, entry, images[entry["image_id"]])
            prompted = PromptedObject(points, box, entry.get("category_id"), key)
            objects[names[entry["image_id"]]].append(prompted)
    return PromptFile(
        path,
        {name: tuple(each) for name, each in objects.items()},
        [{"name": str(key), **each} for key, each in _by_id(path, content, "categories").items()],
        {name: key for key, name in names.items()},
    )


def _coco_points(
    path: Path, where: str, entry: Mapping[str, Any], image: Mapping[str, Any]
) -> tuple[Point, ...]:
    """The visible keypoints of an annotation, or else the point of its mask that lies deepest."""
    keypoints = entry.get("keypoints") or []
    if keypoints:
        if not isinstance(keypoints, list) or len(keypoints) % 3:
            raise _wrong(path, f"{where}: keypoints must be x, y, visibility, again and again")
        numbers = _numbers(path, where, keypoints, len(keypoints))
        triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        points = tuple((x, y, 1) for x, y, visibility in triples if visibility > 0)
        if points:
            return points
    from samfast.bench.coco_dataset import to_mask
    from samfast.bench.mask_points import edt
    from samfast.errors import SamfastError

    height, width = _numbers(path, where, [image.get("height"), image.get("width")], 2)
    try:
        mask = to_mask(entry.get("segmentation"), (int(height), int(width)), where)
    except SamfastError as error:
        raise _wrong(path, str(error)) from error
    if not mask.any():
        raise _wrong(path, f"{where} has neither keypoints nor a mask with a pixel")
    return ((*edt(mask), 1),)


def _by_id(path: Path, content: Mapping[str, Any], key: str) -> dict[Any, dict[str, Any]]:
    """The entries of a list in a COCO file, by their ids, which must differ."""
    entries = content.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise _wrong(path, f"{key} must be a list of objects")
    ids = [each.get("id") for each in entries]
    if not all(isinstance(each, int | str) for each in ids) or len(set(ids)) < len(ids):
        raise _wrong(path, f"each of its {key} needs an id of its own, a number or text")
    return dict(zip(ids, entries, strict=True))


def _box(path: Path, where: str, corners: Any) -> Box:
    x0, y0, x1, y1 = _numbers(path, where, corners, 4)
    if not (x0 < x1 and y0 < y1):
        raise _wrong(path, f"{where}: the box is inverted or empty; it needs x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def _label(path: Path, where: str, label: Any) -> int:
    if str(label) not in ("0", "1"):
        raise _wrong(path, f"{where}: a label is 1 (foreground) or 0 (background), not {label!r}")
    return int(label)


def _numbers(path: Path, where: str, values: Any, count: int) -> list[float]:
    """So many finite numbers, from a list of numbers or texts."""
    items: Iterable[Any] = values if isinstance(values, list | tuple) else ()
    try:
        numbers = [float(value) for value in items]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise _wrong(path, f"{where}: {values!r} must be {count} numbers")
    return numbers


def _wrong(path: Path, text: str) -> CommandLineError:
    return CommandLineError(f"--prompts {path}: {text}")
