"""The prompts of one image as arrays, or a PromptError that names the image, the object and the
remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.errors import PromptError
from samfast.types import Prompts, Size

Points = NDArray[np.float64] | list[NDArray[np.float64]]
Labels = NDArray[np.int64] | list[NDArray[np.int64]]


@dataclass(frozen=True)
class Checked:
    """Prompts of N objects of one image, in its own pixels.

    points  (N, K, 2) float64, or where objects differ N arrays (K_i, 2), or None
    labels  (N, K) int64, or N arrays (K_i,), or None
    boxes   (N, 4) float64 or None;  masks  (N, 1, h, w) float32 or None
    """

    count: int
    points: Points | None
    labels: Labels | None
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
    may_be_empty = points is not None and (isinstance(points, list) or points.shape[1] == 0)
    if points is not None and may_be_empty and boxes is None and masks is None:
        for i, each in enumerate(points):
            if len(each) == 0:
                raise PromptError(
                    f"{where}, object {i}: no points, box or mask; leave the object out"
                )
    return Checked(next(iter(given.values())), points, labels, boxes, masks)


def _on_host(value: Any) -> Any:
    """What numpy can read."""
    if not isinstance(value, torch.Tensor):
        return value
    own = value.detach()
    return (own.float() if own.dtype == torch.bfloat16 else own).cpu().numpy()


def _even(value: Any) -> NDArray[np.float64] | None:
    """All numbers as one array, if that is easily had; else they are looked at object by object."""
    if _ragged(value) and any(isinstance(each, torch.Tensor) for each in value):
        return None
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _uneven(objects: list[Any]) -> list[NDArray[np.float64]]:
    """The numbers of each object; none if one of them has no even ones."""
    try:
        return [np.asarray(_on_host(each), dtype=np.float64) for each in objects]
    except (TypeError, ValueError):
        return []


def _array(value: Any, kind: str, where: str) -> NDArray[np.float64]:
    value = _on_host(value)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{where}: {kind} are not numbers in an even array ({error})") from error
    if not np.isfinite(array).all():
        raise PromptError(f"{where}: {kind} hold NaN or infinity; leave such prompts out")
    return array


def _ragged(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _points(value: Any, size: Size, where: str) -> Points | None:
    if value is None:
        return None
    value = _on_host(value)
    even = _even(value)
    if (
        even is not None
        and even.ndim == 3
        and even.shape[2] == 2
        and not _outside(even, size).any()
    ):
        return even  # thousands of objects at once; what is wrong is named below
    objects = list(value if _ragged(value) else _array(value, "points", where))
    arrays = _uneven(objects)
    fit = len(arrays) > 0 and all(own.ndim == 2 and own.shape[1] == 2 for own in arrays)
    if fit and not _outside(np.concatenate(arrays), size).any():
        return arrays
    out = []
    for i, each in enumerate(objects):
        points = _array(each, "points", f"{where}, object {i}")
        if points.size == 0:
            points = points.reshape(0, 2)
        if points.ndim != 2 or points.shape[1] != 2:
            raise PromptError(
                f"{where}, object {i}: points of shape {points.shape} instead of (K, 2); points "
                "are (N, K, 2), "
                "one row of K clicks an object (for one object of K clicks: points[None])"
            )
        outside = _outside(points, size)
        if outside.any():
            height, width = size
            x, y = points[outside.argmax()]
            raise PromptError(
                f"{where}, object {i}: point ({x:g}, {y:g}) lies outside the image of {width} x "
                f"{height} pixels; "
                "points are (x, y) in pixels of the original image"
            )
        out.append(points)
    return out


def _outside(points: NDArray[np.float64], size: Size) -> NDArray[np.bool_]:
    """(..., 2) -> (...): which points are not in an image of `size`; those that are NaN or infinite
    are not.
    """
    height, width = size
    inside = (points >= 0) & (points <= (width, height))
    return ~(inside[..., 0] & inside[..., 1])


def _known(labels: NDArray[np.float64]) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = (labels == 1) | (labels == 0) | (labels == -1)
    return known


def _labels(value: Any, points: Points | None, where: str) -> Labels | None:
    if points is None:
        if value is not None:
            raise PromptError(f"{where}: labels without points; give both")
        return None
    if value is None:
        raise PromptError(
            f"{where}: points without labels; give labels, 1 foreground or 0 background, for each"
        )
    value = _on_host(value)
    if isinstance(points, np.ndarray):
        even = _even(value)
        if even is not None and even.shape == points.shape[:2] and _known(even).all():
            return even.astype(np.int64)
    objects = list(value if _ragged(value) else _array(value, "labels", where))
    if len(objects) != len(points):
        raise PromptError(
            f"{where}: labels for {len(objects)} objects but points for {len(points)}"
        )
    arrays = _uneven(objects)
    fit = len(arrays) > 0 and all(
        own.shape == of.shape[:1] for own, of in zip(arrays, points, strict=True)
    )
    if fit and _known(np.concatenate(arrays)).all():
        return [own.astype(np.int64) for own in arrays]
    out = []
    for i, (each, own) in enumerate(zip(objects, points, strict=True)):
        labels = (
            _array(each, "labels", f"{where}, object {i}").reshape(-1) if np.ndim(each) else None
        )
        if labels is None or len(labels) != len(own):
            found = "one number" if labels is None else f"{len(labels)} labels"
            raise PromptError(
                f"{where}, object {i}: {found} for {len(own)} points; labels are (N, K) as points "
                "are"
            )
        wrong = ~_known(labels)
        if wrong.any():
            raise PromptError(
                f"{where}, object {i}: label {labels[wrong.argmax()]:g}; labels are 1 "
                "(foreground), 0 (background) "
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
            f"{where}: boxes of shape {boxes.shape} instead of (N, 4), x0, y0, x1, y1 an object "
            "(one box: box[None])"
        )
    height, width = size
    low, high = boxes[:, :2], boxes[:, 2:]
    if ((low < high) & (high > 0) & (low < (width, height))).all():
        return boxes  # thousands at once, as above
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        if x1 <= x0 or y1 <= y0:
            raise PromptError(
                f"{where}, object {i}: box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is empty or inverted; "
                "boxes are "
                "x0, y0, x1, y1 with x0 < x1 and y0 < y1 (not x, y, width, height)"
            )
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise PromptError(
                f"{where}, object {i}: box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) lies outside the image "
                "of "
                f"{width} x {height} pixels"
            )
    return boxes


def _masks(value: Any, mask_size: Size, where: str) -> torch.Tensor | None:
    if value is None:
        return None
    try:
        masks = (
            torch.as_tensor(value)
            if not _ragged(value)
            else torch.stack([torch.as_tensor(m) for m in value])
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(f"{where}: masks are not arrays of one size ({error})") from error
    if masks.dtype == torch.bool or not masks.is_floating_point():
        raise PromptError(
            f"{where}: masks of {str(masks.dtype).removeprefix('torch.')}; mask prompts are "
            "logits, as `low_res` of "
            "an earlier answer (for a binary mask: 20.0 inside and -20.0 outside, resized to the "
            "size below)"
        )
    if masks.ndim != 4 or tuple(masks.shape[1:]) != (1, *mask_size):
        raise PromptError(
            f"{where}: masks of shape {tuple(masks.shape)} instead of (N, 1, {mask_size[0]}, "
            f"{mask_size[1]}); "
            "take one of `low_res` of an earlier answer, low_res[:, i:i + 1]"
        )
    masks = masks.detach().float()
    # Masks on a GPU are logits of an earlier answer: looking at them here would wait for the GPU.
    if masks.device.type == "cpu" and not torch.isfinite(masks).all():
        raise PromptError(f"{where}: masks hold NaN or infinity; leave such prompts out")
    return masks
