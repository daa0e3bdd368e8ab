"""The points and boxes that prompt for annotated masks; points are kept in the user's cache.

A point takes a distance transform, COCO val2017 has 36 thousand masks, and each recipe of a ladder
uses the same points.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samfast.atomic_files import atomic_write
from samfast.bench.coco_dataset import Annotation, Box, Dataset
from samfast.errors import SamfastError
from samfast.types import Size
from samfast.user_cache import cache_dir

Point = tuple[float, float]
Points = dict[int, Point]
"""XY by `Annotation.number`."""

VERSION = 2
"""Part of the files' names: of the rules and of the format."""

_LOG = logging.getLogger("samfast")


def edt(mask: NDArray[np.bool_]) -> Point:
    """XY of the pixel farthest from the mask's border; of several the first in row-major order.

    The maximum of the Euclidean distance transform, the outside of the image counted as background.
    mask  (H, W) bool with at least one pixel
    """
    from scipy import ndimage

    left, top, width, height = map(int, box_of(mask))
    cut = np.pad(mask[top : top + height, left : left + width], 1)
    distance = ndimage.distance_transform_edt(cut)[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return float(left + column), float(top + row)


def seed(mask: NDArray[np.bool_]) -> Point:
    """XY of the centre of mass, rounded, where that is a pixel of the mask; else as `edt`."""
    rows, columns = np.nonzero(mask)
    row, column = round(float(rows.mean())), round(float(columns.mean()))
    return (float(column), float(row)) if mask[row, column] else edt(mask)


RULES: dict[str, Callable[[NDArray[np.bool_]], Point]] = {"edt": edt, "seed": seed}
"""How a mask's point is chosen; "seed" is the rule of "Accelerating Generative AI with
PyTorch: Segment Anything, Fast" (2023)."""


def box_of(mask: NDArray[np.bool_]) -> Box:
    """The tightest XYWH box of a mask with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return float(left), float(top), float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)


def filled(box: Box, size: Size) -> NDArray[np.bool_]:
    """An XYWH box as a mask of (height, width) `size`: the pixels whose centres lie in it."""
    x, y, width, height = box
    across, down = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    columns, rows = (across >= x) & (across < x + width), (down >= y) & (down < y + height)
    mask: NDArray[np.bool_] = rows[:, None] & columns[None, :]
    return mask


def points_dir() -> Path:
    """Where points are kept unless another folder is named."""
    return cache_dir() / "points"


def sample(
    dataset: Dataset,
    rule: str,
    *,
    limit: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int], object] = lambda steps: None,
) -> Points:
    """The point of each mask of the first `limit` images, by a rule of RULES.

    folder    where points are kept, a file for each annotation file and rule; None: `points_dir()`
    progress  called with 1 after each mask that was not in the file
    returns   points; empty and damaged masks have none, and scoring reports them

    An interrupt keeps the points so far. A file that cannot be read or written is logged.
    """
    path = None  # a data set made by hand has no digest to keep points under
    if dataset.digest:
        name = f"{dataset.digest[:32]}-{rule}-{VERSION}.json"
        path = Path(folder or points_dir()) / name
    kept = {} if path is None else _load(path)
    missing = [
        annotation
        for image in dataset.images[:limit]
        for annotation in image.annotations
        if annotation.number not in kept
    ]

    def point(annotation: Annotation) -> Point | None:
        try:
            mask = annotation.mask()
        except SamfastError:
            return None
        return RULES[rule](mask) if mask.any() else None

    points = dict(kept)
    try:
        with ThreadPoolExecutor() as pool:  # scipy releases the interpreter's lock
            for annotation, xy in zip(missing, pool.map(point, missing), strict=True):
                if xy is not None:
                    points[annotation.number] = xy
                progress(1)
    finally:
        if path is not None and len(points) > len(kept):
            _save(path, points)
    return points


def _load(path: Path) -> Points:
    try:
        content = json.loads(path.read_bytes())
        return {int(number): (float(x), float(y)) for number, (x, y) in content.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, TypeError, AttributeError, ValueError, RecursionError) as error:
        _LOG.warning("the sampled points %s are damaged (%s) and sampled again", path, error)
        return {}


def _save(path: Path, points: Points) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(points).encode())
    except OSError as error:  # OutputError is one
        _LOG.warning("the sampled points are not kept: %s", " ".join(str(error).split()))
