"""The prompts of one image as arrays; a wrong one is refused by image, object and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.device.checked_tensor import plain
from samfast.errors import PromptError
from samfast.types import Prompts, Size

Numbers = NDArray[np.float64] | list[NDArray[np.float64]]
"""One array, or an array per object where these differ in length."""


@dataclass(frozen=True)
class CheckedPrompts:
    """Prompts of N objects of one image, in its own pixels.

    points  (N, K, 2) float64, or where objects differ N arrays (K_i, 2), or None
    labels  (N, K) int64, or N arrays (K_i,), or None
    boxes   (N, 4) float64 or None;  masks  (N, 1, h, w) float32 or None
    """

    count: int
    points: Numbers | None
    labels: NDArray[np.int64] | list[NDArray[np.int64]] | None
    boxes: NDArray[np.float64] | None
    masks: torch.Tensor | None


def check(prompts: Prompts, size: Size, mask_size: Size, where: str) -> CheckedPrompts:
    """Check the prompts of an image of `size` (height, width); `where` names it in messages.

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
        may_be_empty = isinstance(points, list) or points.shape[1] == 0
        for i, each in enumerate(points if may_be_empty else ()):
            if len(each) == 0:
                raise PromptError(
                    f"{where}, object {i}: no points, box or mask; leave the object out"
                )
    return CheckedPrompts(next(iter(given.values())), points, labels, boxes, masks)


def check_clicks(prompts: Sequence[Prompts], sizes: Sequence[Size]) -> list[CheckedPrompts] | None:
    """As `check`, of all images at once, where all have as many objects of as many points, and
    nothing is wrong; None: they are to be checked one by one.

    Arrays of one image's click take longer to make than all else on the host that is done for it.
    """
    if len(prompts) < 2 or not all(map(_only_clicks, prompts)):
        return None
    try:
        points = _real([each.points for each in prompts])
        labels = _real([each.labels for each in prompts])
    except NO_NUMBERS:
        return None
    if points.ndim != 4 or points.shape[3] != 2 or labels.shape != points.shape[:3]:
        return None
    ends = np.array([(width, height) for height, width in sizes])[:, None, None]
    inside = (points >= 0) & (points <= ends)  # NaN compares false
    if not (points.size and inside.all() and _known(labels).all()):
        return None
    count = points.shape[1]
    return [
        CheckedPrompts(count, *each, None, None)
        for each in zip(points, labels.astype(np.int64), strict=True)
    ]


def _only_clicks(prompts: Prompts) -> bool:
    """Whether these are lists of points and labels, and nothing else."""
    if not isinstance(prompts, Prompts) or prompts.boxes is not None or prompts.masks is not None:
        return False
    return all(
        isinstance(each, list | tuple) and not any(isinstance(x, torch.Tensor) for x in each)
        for each in (prompts.points, prompts.labels)
    )


NO_NUMBERS = (TypeError, ValueError, OverflowError, RuntimeError)
"""What NumPy raises on what is no even array of numbers; RuntimeError is of tensors inside."""

SHAPES = {"points": "(N, K, 2), K clicks an object", "labels": "(N, K), one a point"}


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _array(value: Any, kind: str, where: str) -> NDArray[np.float64]:
    """The numbers as they are; PromptError where they are not numbers or not even."""
    if isinstance(value, torch.Tensor):
        value = _plain(value, kind, where).detach()
    try:
        if isinstance(value, torch.Tensor):
            value = (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
        return _real(value)
    except NO_NUMBERS as error:
        raise PromptError(f"{where}: {kind} are not numbers in an even array ({error})") from error


def _real(value: Any) -> NDArray[np.float64]:
    """The numbers; one of NO_NUMBERS for any other value."""
    array = np.asarray(value)
    if array.dtype.kind == "c":  # NumPy would drop the imaginary parts
        raise TypeError("complex numbers")
    return array.astype(np.float64, copy=False)


def _plain(value: torch.Tensor, kind: str, where: str) -> torch.Tensor:
    """The tensor; PromptError unless it is dense."""
    if value.is_nested or value.layout != torch.strided or value.is_quantized:
        given = "a nested tensor" if value.is_nested else f"{value.layout}, {value.dtype}"
        raise PromptError(
            f"{where}: {kind} are {given}; give dense tensors, a list of one an object where these "
            "differ in length (SamFast.predict_batch takes jagged tensors)"
        )
    return value


def _finite(array: NDArray[Any], kind: str, where: str) -> NDArray[Any]:
    if not np.isfinite(array).all():
        raise PromptError(f"{where}: {kind} hold NaN or infinity; leave such prompts out")
    return array


def _objects(value: Any, kind: str, where: str) -> Numbers:
    """The numbers of all objects at once where these are even, else an array per object."""
    if not _is_list(value):
        array = _array(value, kind, where)
        if array.ndim == 0:
            raise PromptError(f"{where}: {kind} are one number; {kind} are {SHAPES[kind]}")
        return array
    if not any(isinstance(each, torch.Tensor) for each in value):
        with suppress(*NO_NUMBERS):
            return _real(value)
        with suppress(*NO_NUMBERS):
            return [_real(each) for each in value]
    return [_array(each, kind, f"{where}, object {i}") for i, each in enumerate(value)]


def _first_wrong(
    value: Any, parts: Numbers, rows: NDArray[np.float64], fits: Any, kind: str, where: str
) -> tuple[str, NDArray[np.float64]]:
    """The object, for a message, and the numbers of the first row that does not fit.

    parts  the numbers of each object of `value`; rows, all of them; fits, a bool for each row
    """
    row = int(fits.argmin())
    ends = np.cumsum([len(each) for each in parts])
    named = f"{where}, object {np.searchsorted(ends, row, side='right')}"
    _finite(rows, kind, named if _is_list(value) else where)
    return named, rows[row]


def _points(value: Any, size: Size, where: str) -> Numbers | None:
    if value is None:
        return None
    points = _objects(value, "points", where)
    if isinstance(points, list) or points.ndim != 3 or points.shape[2] != 2:
        points = list(points)
        if not all(each.ndim == 2 and each.shape[1] == 2 for each in points):
            points = [_clicks(each, f"{where}, object {i}") for i, each in enumerate(points)]
        rows = np.concatenate(points) if points else np.zeros((0, 2))
    else:
        rows = points.reshape(-1, 2)
    height, width = size
    inside = (rows >= 0) & (rows <= (width, height))  # NaN compares false
    if inside.all():
        return points
    named, (x, y) = _first_wrong(value, points, rows, inside.all(1), "points", where)
    raise PromptError(
        f"{named}: point ({x:g}, {y:g}) lies outside the image of {width} x {height} pixels; "
        "points are (x, y) in pixels of the original image"
    )


def _clicks(points: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """The points (K, 2) of one object."""
    if points.size == 0:
        return points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise PromptError(
            f"{where}: points of shape {points.shape} instead of (K, 2); points are (N, K, 2), one "
            "row of K clicks an object (for one object of K clicks: points[None])"
        )
    return points


def _labels(
    value: Any, points: Numbers | None, where: str
) -> NDArray[np.int64] | list[NDArray[np.int64]] | None:
    if points is None:
        if value is not None:
            raise PromptError(f"{where}: labels without points; give both")
        return None
    if value is None:
        raise PromptError(
            f"{where}: points without labels; give labels, 1 foreground or 0 background, for each"
        )
    labels = _objects(value, "labels", where)
    even = isinstance(labels, np.ndarray) and isinstance(points, np.ndarray)
    if not even or labels.shape != points.shape[:2]:  # type: ignore[union-attr]
        if len(labels) != len(points):
            raise PromptError(
                f"{where}: labels for {len(labels)} objects but points for {len(points)}"
            )
        labels = list(labels)
        if any(each.shape != of.shape[:1] for each, of in zip(labels, points, strict=True)):
            labels = [
                _kinds(each, len(of), f"{where}, object {i}")
                for i, (each, of) in enumerate(zip(labels, points, strict=True))
            ]
    rows = (
        labels.reshape(-1)
        if isinstance(labels, np.ndarray)
        else np.concatenate([*labels, np.zeros(0)])
    )
    known = _known(rows)
    if not known.all():
        named, label = _first_wrong(value, labels, rows, known, "labels", where)
        raise PromptError(
            f"{named}: label {label:g}; labels are 1 (foreground), 0 (background) or -1 (the "
            'model\'s "not a point")'
        )
    if isinstance(labels, np.ndarray):
        return labels.astype(np.int64)
    return [each.astype(np.int64) for each in labels]


def _known(labels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each label is one that the model knows."""
    known: NDArray[np.bool_] = (labels == 1) | (labels == 0) | (labels == -1)
    return known


def _kinds(labels: NDArray[np.float64], points: int, where: str) -> NDArray[np.float64]:
    """The labels (K,) of one object of so many points."""
    if labels.ndim == 0 or labels.size != points:
        given = f"{labels.size} labels" if labels.ndim else "one number"
        raise PromptError(f"{where}: {given} for {points} points; labels are (N, K) as points are")
    return labels.reshape(-1)


def _boxes(value: Any, size: Size, where: str) -> NDArray[np.float64] | None:
    if value is None:
        return None
    boxes = _finite(_array(value, "boxes", where), "boxes", where)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise PromptError(
            f"{where}: boxes of shape {boxes.shape} instead of (N, 4), x0, y0, x1, y1 an object "
            "(one box: box[None])"
        )
    height, width = size
    low, high = boxes[:, :2], boxes[:, 2:]
    fits = (low < high) & (high > 0) & (low < (width, height))
    if fits.all():
        return boxes
    i = int(fits.all(1).argmin())
    x0, y0, x1, y1 = boxes[i]
    named = f"{where}, object {i}: box ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if x1 <= x0 or y1 <= y0:
        raise PromptError(
            f"{named} is empty or inverted; boxes are x0, y0, x1, y1 with x0 < x1 and y0 < y1 (not "
            "x, y, width, height)"
        )
    raise PromptError(f"{named} lies outside the image of {width} x {height} pixels")


def _masks(value: Any, mask_size: Size, where: str) -> torch.Tensor | None:
    if value is None:
        return None
    try:
        masks = (
            _plain(torch.as_tensor(value), "masks", where)
            if not _is_list(value)
            else torch.stack([_plain(torch.as_tensor(m), "masks", where) for m in value])
        )
    except PromptError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(f"{where}: masks are not arrays of one size ({error})") from error
    if masks.dtype == torch.bool or not masks.is_floating_point():
        raise PromptError(
            f"{where}: masks of {str(masks.dtype).removeprefix('torch.')}; mask prompts are "
            "logits, as `low_res` of an earlier answer (for a binary mask: 20.0 inside and -20.0 "
            "outside, resized to the size below)"
        )
    if masks.ndim != 4 or tuple(masks.shape[1:]) != (1, *mask_size):
        raise PromptError(
            f"{where}: masks of shape {tuple(masks.shape)} instead of (N, 1, {mask_size[0]}, "
            f"{mask_size[1]}); take one of `low_res` of an earlier answer, low_res[:, i:i + 1]"
        )
    masks = plain(masks.detach()).float()
    # Masks on a GPU are logits of an earlier answer: reading them here would wait for the GPU.
    if masks.device.type == "cpu":
        _finite(masks.numpy(), "masks", where)
    return masks
