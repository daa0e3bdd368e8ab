"""The prompts of one image as arrays, or a PromptError that names the image, the object and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.errors import PromptError
from samfast.types import Prompts, Size

LABELS = (1, 0, -1)


@dataclass(frozen=True)
class Checked:
    """Prompts of N objects of one image, in its own pixels.

    points  N arrays (K_i, 2) float64, or None;  labels  N arrays (K_i,) int64
    boxes   (N, 4) float64 or None;  masks  (N, 1, h, w) float32 or None
    """

    count: int
    points: list[NDArray[np.float64]] | None
    labels: list[NDArray[np.int64]] | None
    boxes: NDArray[np.float64] | None
    masks: torch.Tensor | None


def check(prompts: Prompts, size: Size, mask_size: Size, where: str) -> Checked:
    """Prompts of an image of `size` (height, width); `where` names it in messages.

    mask_size  (height, width) of a mask prompt, 256 x 256 for every public checkpoint
    """
    if not isinstance(prompts, Prompts):
        raise PromptError(
            f"{where}: {type(prompts).__name__} instead of samfast.Prompts(points=..., boxes=...)"
        )
    points = _points(prompts.points, size, where)
    labels = _labels(prompts.labels, points, where)
    boxes = _boxes(prompts.boxes, size, where)
    masks = _masks(prompts.masks, mask_size, where)
    given = {
        name: len(value)
        for name, value in (("points", points), ("boxes", boxes), ("masks", masks))
        if value is not None
    }
    if not given:
        raise PromptError(f"{where}: no prompts at all; give points with labels, boxes or masks")
    if len(set(given.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in given.items())
        raise PromptError(f"{where}: {counts}; each must have one entry an object")
    if points is not None and boxes is None and masks is None:
        for i, each in enumerate(points):
            if len(each) == 0:
                raise PromptError(f"{where}, object {i}: no points, box or mask; leave the object out")
    return Checked(next(iter(given.values())), points, labels, boxes, masks)


def _array(value: Any, kind: str, where: str) -> NDArray[np.float64]:
    if isinstance(value, torch.Tensor):
        value = (
            value.detach().cpu().numpy()
            if value.dtype != torch.bfloat16
            else value.detach().float().cpu().numpy()
        )
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{where}: {kind} are not numbers in an even array ({error})") from error
    if not np.isfinite(array).all():
        raise PromptError(f"{where}: {kind} hold NaN or infinity; leave such prompts out")
    return array


def _ragged(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _points(value: Any, size: Size, where: str) -> list[NDArray[np.float64]] | None:
    if value is None:
        return None
    if _ragged(value):
        objects = list(value)
    else:
        even = _array(value, "points", where)
        if even.ndim == 3 and even.shape[2] == 2 and not _outside(even, size).any():
            return list(even)  # thousands of objects at once; what is wrong is named below
        objects = list(even)
    out = []
    for i, each in enumerate(objects):
        points = _array(each, "points", f"{where}, object {i}")
        if points.size == 0:
            points = points.reshape(0, 2)
        if points.ndim != 2 or points.shape[1] != 2:
            raise PromptError(
                f"{where}, object {i}: points of shape {points.shape} instead of (K, 2); points are (N, K, 2), "
                "one row of K clicks an object (for one object of K clicks: points[None])"
            )
        height, width = size
        outside = _outside(points, size)
        if outside.any():
            x, y = points[outside.argmax()]
            raise PromptError(
                f"{where}, object {i}: point ({x:g}, {y:g}) lies outside the image of {width} x {height} pixels; "
                "points are (x, y) in pixels of the original image"
            )
        out.append(points)
    return out


def _outside(points: NDArray[np.float64], size: Size) -> NDArray[np.bool_]:
    """(..., 2) -> (...): which points are not in an image of `size`."""
    height, width = size
    outside: NDArray[np.bool_] = (points < 0).any(-1) | (points[..., 0] > width) | (points[..., 1] > height)
    return outside


def _labels(
    value: Any, points: list[NDArray[np.float64]] | None, where: str
) -> list[NDArray[np.int64]] | None:
    if points is None:
        if value is not None:
            raise PromptError(f"{where}: labels without points; give both")
        return None
    if value is None:
        raise PromptError(
            f"{where}: points without labels; give labels, 1 foreground or 0 background, for each"
        )
    if _ragged(value):
        objects = list(value)
    else:
        even = _array(value, "labels", where)
        fits = even.ndim == 2 and len(even) == len(points)
        if fits and all(len(own) == even.shape[1] for own in points) and np.isin(even, LABELS).all():
            return list(even.astype(np.int64))
        objects = list(even)
    if len(objects) != len(points):
        raise PromptError(f"{where}: labels for {len(objects)} objects but points for {len(points)}")
    out = []
    for i, (each, own) in enumerate(zip(objects, points, strict=True)):
        labels = _array(each, "labels", f"{where}, object {i}").reshape(-1) if np.ndim(each) else None
        if labels is None or len(labels) != len(own):
            found = "one number" if labels is None else f"{len(labels)} labels"
            raise PromptError(
                f"{where}, object {i}: {found} for {len(own)} points; labels are (N, K) as points are"
            )
        wrong = ~np.isin(labels, LABELS)
        if wrong.any():
            raise PromptError(
                f"{where}, object {i}: label {labels[wrong.argmax()]:g}; labels are 1 (foreground), 0 (background) "
                'or -1 (the model\'s "not a point")'
            )
        out.append(labels.astype(np.int64))
    return out


def _boxes(value: Any, size: Size, where: str) -> NDArray[np.float64] | None:
    if value is None:
        return None
    boxes = _array(value, "boxes", where)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise PromptError(
            f"{where}: boxes of shape {boxes.shape} instead of (N, 4), x0, y0, x1, y1 an object (one box: box[None])"
        )
    height, width = size
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        if x1 <= x0 or y1 <= y0:
            raise PromptError(
                f"{where}, object {i}: box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is empty or inverted; boxes are "
                "x0, y0, x1, y1 with x0 < x1 and y0 < y1 (not x, y, width, height)"
            )
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise PromptError(
                f"{where}, object {i}: box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) lies outside the image of "
                f"{width} x {height} pixels"
            )
    return boxes


def _masks(value: Any, mask_size: Size, where: str) -> torch.Tensor | None:
    if value is None:
        return None
    try:
        masks = (
            torch.as_tensor(value) if not _ragged(value) else torch.stack([torch.as_tensor(m) for m in value])
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(f"{where}: masks are not arrays of one size ({error})") from error
    if masks.dtype == torch.bool or not masks.is_floating_point():
        raise PromptError(
            f"{where}: masks of {str(masks.dtype).removeprefix('torch.')}; mask prompts are logits, as `low_res` of "
            "an earlier answer (for a binary mask: 20.0 inside and -20.0 outside, resized to the size below)"
        )
    if masks.ndim != 4 or tuple(masks.shape[1:]) != (1, *mask_size):
        raise PromptError(
            f"{where}: masks of shape {tuple(masks.shape)} instead of (N, 1, {mask_size[0]}, {mask_size[1]}); "
            "take one of `low_res` of an earlier answer, low_res[:, i:i + 1]"
        )
    masks = masks.detach().float()
    # Masks on a GPU are logits of an earlier answer: looking at them here would wait for the GPU.
    if masks.device.type == "cpu" and not torch.isfinite(masks).all():
        raise PromptError(f"{where}: masks hold NaN or infinity; leave such prompts out")
    return masks
