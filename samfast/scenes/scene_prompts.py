"""Prompts anywhere in a scene: in its pixels or its coordinates, or from a file of geometries."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samfast.errors import MissingExtraError, PromptError, shown
from samfast.scenes.georeference import Georeference
from samfast.types import Prompts, Size

COORDINATES = ("pixels", "map")


@dataclass(frozen=True, eq=False)
class ScenePrompt:
    """One object, by clicks, a box or both, in pixels of the scene.

    points  (K, 2) XY, K may be 0
    labels  (K,) 1 foreground, 0 background
    box     (4,) XYXY, or None
    """

    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    box: NDArray[np.float64] | None

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) of all points and the box."""
        parts = [self.points] if self.box is None else [self.points, self.box.reshape(2, 2)]
        corners = np.concatenate(parts)
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
        return float(x0), float(y0), float(x1), float(y1)

    @property
    def ambiguous(self) -> bool:
        """Whether a single click leaves open what is meant: the best of three masks is taken."""
        return self.box is None and len(self.points) == 1


def scene_prompts(
    prompts: Prompts, coordinates: str, reference: Georeference, size: Size
) -> list[ScenePrompt]:
    """The objects of `prompts`, in pixels of a scene of `size` (H, W).

    coordinates  of points and boxes: "pixels" of the scene, or "map", its CRS

    Raises PromptError, with the object's number, for what does not fit or lies outside the scene.
    """
    if coordinates not in COORDINATES:
        raise PromptError(f"coordinates={shown(coordinates)}; they are pixels or map")
    if prompts.masks is not None:
        raise PromptError("mask prompts belong to an image; give points or boxes in a scene")
    if coordinates == "map" and reference.in_pixels:
        raise PromptError("the scene has no transform, so that it has pixels only")
    points, labels = _clicks(prompts)
    boxes = None if prompts.boxes is None else _array(prompts.boxes, "boxes", 4)
    count = len(points) if boxes is None else len(boxes)
    if points and len(points) != count:
        raise PromptError(f"points of {len(points)} objects and {count} boxes")
    objects = []
    for number in range(count):
        xy = points[number] if points else np.zeros((0, 2))
        box = None if boxes is None else boxes[number]
        if coordinates == "map":
            xy = reference.to_pixels(xy)
            box = None if box is None else _box_to_pixels(box, reference)
        label = labels[number] if points else np.zeros(0, dtype=np.int64)
        made = ScenePrompt(xy, label, box)
        _check(made, number, size)
        objects.append(made)
    return objects


def _clicks(prompts: Prompts) -> tuple[list[NDArray[np.float64]], list[NDArray[np.int64]]]:
    if prompts.points is None:
        if prompts.boxes is None:
            raise PromptError("neither points nor boxes; give at least one of them")
        return [], []
    points = [_array(each, "points", 2) for each in prompts.points]
    if prompts.labels is None:
        raise PromptError("points without labels; 1 lies on the object, 0 beside it")
    labels = [np.asarray(each).reshape(-1).astype(np.int64) for each in prompts.labels]
    for number in range(max(len(points), len(labels))):
        fits = number < min(len(points), len(labels))
        if not fits or len(points[number]) != len(labels[number]):
            raise PromptError(f"object {number}: give a label for each point")
        if not np.isin(labels[number], (0, 1)).all():
            raise PromptError(f"object {number}: labels are {shown(labels[number])}, not 0 and 1")
    return points, labels


def _array(values: object, name: str, width: int) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{name} are {shown(values)}, not numbers") from error
    if array.ndim != 2 or array.shape[1] != width or not np.isfinite(array).all():
        raise PromptError(f"{name} are {shown(values)}; give finite numbers (N, {width})")
    return array


def _box_to_pixels(box: NDArray[np.float64], reference: Georeference) -> NDArray[np.float64]:
    """The smallest box of pixels around a box of the CRS."""
    x0, y0, x1, y1 = box
    corners = reference.to_pixels(np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]]))
    return np.concatenate([corners.min(0), corners.max(0)])


def _check(prompt: ScenePrompt, number: int, size: Size) -> None:
    height, width = size
    if prompt.box is not None and not (
        prompt.box[0] < prompt.box[2] and prompt.box[1] < prompt.box[3]
    ):
        raise PromptError(f"object {number}: its box {prompt.box.tolist()} is empty or inverted")
    if prompt.box is None and not (prompt.labels == 1).any():
        raise PromptError(f"object {number}: no point lies on it, and it has no box")
    x0, y0, x1, y1 = prompt.extent
    inside = x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height
    touches = prompt.box is not None and x0 < width and y0 < height and x1 > 0 and y1 > 0
    if not (inside or touches):
        raise PromptError(
            f"object {number}: it lies outside the scene of {width} x {height} pixels (x {x0:g} to "
            f"{x1:g}, y {y0:g} to {y1:g})"
        )


def read_geometries(
    path: str | os.PathLike[str], reference: Georeference, size: Size
) -> list[ScenePrompt]:
    """The prompts in a file of geometries that GDAL reads, such as a GeoPackage.

    A point is a click, and several points of one geometry are clicks on one object; of a line or a
    polygon the bounding box is the prompt. They are transformed to the scene's CRS; a file without
    CRS has the scene's coordinates: those of its CRS, or its pixels if it has no transform.

    Raises PromptError, naming the file and the feature, for what cannot be used; MissingExtraError
    without pyogrio.
    """
    try:
        import pyogrio
        import shapely
        from pyogrio.errors import DataLayerError, DataSourceError
    except ImportError as error:
        raise MissingExtraError(
            "files of geometries need pyogrio and shapely; pip install 'samfast[large]'"
        ) from error
    try:
        meta, _, geometries, _ = pyogrio.raw.read(path, columns=[])
    except (DataSourceError, DataLayerError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise PromptError(f"{path}: cannot be read ({reason})") from error
    if meta["crs"] is not None and reference.crs is None:
        raise PromptError(
            f"{path}: it has a CRS and the scene has none; write it in the scene's pixels"
        )
    prompts = []
    for number, shape in enumerate(shapely.from_wkb(geometries)):
        if shape is None or shape.is_empty:
            raise PromptError(f"{path}: feature {number} has no geometry; remove it")
        xy = shapely.get_coordinates(shape)
        if meta["crs"] is not None:
            xy = _transformed(xy, str(meta["crs"]), str(reference.crs))
        xy = reference.to_pixels(xy)
        if shape.geom_type in ("Point", "MultiPoint"):
            made = ScenePrompt(xy, np.ones(len(xy), dtype=np.int64), None)
        else:
            box = np.concatenate([xy.min(0), xy.max(0)])
            made = ScenePrompt(np.zeros((0, 2)), np.zeros(0, dtype=np.int64), box)
        try:
            _check(made, number, size)
        except PromptError as error:
            raise PromptError(f"{path}: {error}") from None
        prompts.append(made)
    return prompts


def _transformed(xy: NDArray[np.float64], source: str, target: str) -> NDArray[np.float64]:
    from rasterio.crs import CRS
    from rasterio.warp import transform

    here, there = CRS.from_user_input(source), CRS.from_user_input(target)
    if here == there:
        return xy
    x, y = transform(here, there, xy[:, 0].tolist(), xy[:, 1].tolist())
    return np.stack([np.array(x), np.array(y)], 1)
