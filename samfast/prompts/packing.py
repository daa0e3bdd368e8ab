"""Prompts of many images -> PackedPrompts in pixels of the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.errors import PromptError
from samfast.prompts.validation import CheckedPrompts, check, check_clicks
from samfast.types import PADDING_LABEL, PackedPrompts, Prompts, Size


def pack(
    prompts: Sequence[Prompts],
    original_sizes: Sequence[Size],
    input_sizes: Sequence[Size],
    mask_size: Size,
) -> PackedPrompts:
    """Check the prompts of B images and pack them flat, on the host.

    original_sizes  (H, W) of each image, whose pixels the prompts are in
    input_sizes     (h, w) of each inside the model's input, whose pixels the result is in
    mask_size       (height, width) of mask prompts

    Objects with fewer points than the one with most are filled up with PADDING_LABEL. Every image
    must be prompted by the same kinds (points, boxes, masks); pack others apart. Raises
    PromptError.
    """
    checked = _check_all(prompts, original_sizes, mask_size)
    if len({_kinds(each)[:3] for each in checked}) > 1:
        raise PromptError(
            "images prompted by different kinds (points, boxes, masks) cannot share a batch"
        )
    return _pack(checked, range(len(checked)), original_sizes, input_sizes)


def pack_groups(
    prompts: Sequence[Prompts],
    original_sizes: Sequence[Size],
    input_sizes: Sequence[Size],
    mask_size: Size,
    numbers: Sequence[int] | None = None,
) -> list[PackedPrompts]:
    """Check the prompts of B images, of any kinds, and pack those of the same kinds together.

    Arguments as `pack`; numbers are what messages call the images, None: 0 to B - 1. Every image is
    in one of the groups. Images of equal sizes follow each other, so that their masks can be
    upscaled at once. Raises PromptError, before anything is packed.
    """
    checked = _check_all(prompts, original_sizes, mask_size, numbers)
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, each in enumerate(checked):
        groups.setdefault(_kinds(each), []).append(i)
    for images in groups.values():
        images.sort(key=lambda i: (original_sizes[i], input_sizes[i]))
    return [_pack(checked, images, original_sizes, input_sizes) for images in groups.values()]


def pack_objects(
    points: Sequence[Sequence[Sequence[float]]] | None,
    labels: Sequence[Sequence[int]] | None,
    boxes: Sequence[Sequence[float]] | None,
    masks: Tensor | None,
    images: Sequence[int],
    original_sizes: Sequence[Size],
    input_sizes: Sequence[Size],
) -> PackedPrompts:
    """Pack P objects of one kind, which are known to fit their images, flat, on the host.

    points, labels  of each object, in pixels of its image; None: objects have no points
    boxes           of each object, XYXY, or None
    masks           (P, 1, h, w) logits, or None
    images          the number of each object's image, ascending
    original_sizes, input_sizes  as `pack`, of all B images

    The same numbers as `pack` gives; nothing is made for an image or an object by itself.

    >>> pack_objects([[(320, 240)]], [[1]], None, None, [0], [(480, 640)], [(768, 1024)]).coords
    tensor([[[512., 384.]]])
    """
    sizes, inputs = (
        np.array(each, np.float64).reshape(-1, 2) for each in (original_sizes, input_sizes)
    )
    of = np.array(images, np.int64)
    scale = (inputs / sizes)[of, ::-1]  # for each object (x, y)
    coords = kinds = corners = None
    if points is not None and labels is not None:
        lengths = np.array(list(map(len, points)), np.int64)
        rows = np.array([each for row in points for each in row], np.float64).reshape(-1, 2)
        flat = np.array([label for row in labels for label in row], np.int64)
        coords, kinds = _filled(lengths, rows, flat, scale)
    if boxes is not None:
        both = np.array(boxes, np.float64).reshape(-1, 2, 2)
        corners = _float32(both * scale[:, None]).view(-1, 4)
    offsets = np.searchsorted(of, np.arange(len(sizes) + 1)).tolist()
    return PackedPrompts(coords, kinds, corners, masks, offsets)


def check_count(prompts: Sequence[Prompts], count: int, images: str = "embeddings of") -> None:
    """PromptError unless prompts are a list of that length; `images` are what needs one each."""
    if isinstance(prompts, Prompts) or not isinstance(prompts, Sequence):
        raise PromptError(
            f"one {type(prompts).__name__} instead of a list of Prompts, one an image; wrap it: "
            "[prompts]"
        )
    if len(prompts) != count:
        raise PromptError(f"prompts for {len(prompts)} images but {images} {count}; give one each")


def _check_all(
    prompts: Sequence[Prompts],
    original_sizes: Sequence[Size],
    mask_size: Size,
    numbers: Sequence[int] | None = None,
) -> list[CheckedPrompts]:
    check_count(prompts, len(original_sizes))
    clicks = check_clicks(prompts, original_sizes)
    if clicks is not None:
        return clicks
    named = range(len(prompts)) if numbers is None else numbers
    return [
        check(each, size, mask_size, f"image {i}")
        for i, each, size in zip(named, prompts, original_sizes, strict=True)
    ]


def _kinds(checked: CheckedPrompts) -> tuple[object, ...]:
    """Equal for images that can share a group; mask prompts lie on one device."""
    device = None if checked.masks is None else checked.masks.device
    return checked.points is None, checked.boxes is None, checked.masks is None, device


def _pack(
    checked: Sequence[CheckedPrompts],
    images: Sequence[int],
    original_sizes: Sequence[Size],
    input_sizes: Sequence[Size],
) -> PackedPrompts:
    checked = [checked[i] for i in images]
    counts = [each.count for each in checked]
    scales = [
        (input_sizes[i][1] / original_sizes[i][1], input_sizes[i][0] / original_sizes[i][0])
        for i in images
    ]
    # For each object (x, y): input pixels per pixel of the image.
    scale = np.repeat(np.array(scales, dtype=np.float64).reshape(-1, 2), counts, axis=0)
    coords, labels = _points(checked, scale)
    boxes = masks = None
    if checked and checked[0].boxes is not None:
        corners = np.concatenate([each.boxes for each in checked if each.boxes is not None])
        boxes = _float32(corners.reshape(-1, 2, 2) * scale[:, None]).view(-1, 4)
    if checked and checked[0].masks is not None:
        masks = torch.cat([each.masks for each in checked if each.masks is not None])
    offsets = tuple(accumulate(counts, initial=0))
    return PackedPrompts(coords, labels, boxes, masks, offsets, tuple(images))


def _points(
    checked: Sequence[CheckedPrompts], scale: NDArray[np.float64]
) -> tuple[Tensor | None, Tensor | None]:
    """Coordinates (P, K, 2) in input pixels and labels (P, K), filled up; scale (P, 2)."""
    if not checked or checked[0].points is None:
        return None, None
    even = _even(checked)
    if even is not None:
        coords, labels = even
        return _float32(coords * scale[:, None]), torch.from_numpy(labels)
    points = [each for image in checked if image.points is not None for each in image.points]
    kinds = [each for image in checked if image.labels is not None for each in image.labels]
    lengths = np.array([len(each) for each in points], dtype=np.int64)
    if not points:
        return None, None
    return _filled(lengths, np.concatenate(points), np.concatenate(kinds), scale)


def _filled(
    lengths: NDArray[np.int64],
    points: NDArray[np.float64],
    kinds: NDArray[Any],
    scale: NDArray[np.float64],
) -> tuple[Tensor | None, Tensor | None]:
    """Coordinates (P, K, 2) in input pixels and labels (P, K) of objects with so many points each,
    filled up; points (N, 2) and kinds (N,) of all of them. None if no object has points, as if none
    had been given.
    """
    width = int(lengths.max(initial=0))
    if width == 0:
        return None, None
    if (lengths == width).all():
        even = points.reshape(-1, width, 2) * scale[:, None]
        return _float32(even), torch.from_numpy(kinds.reshape(-1, width))
    coords = np.zeros((len(lengths), width, 2))
    labels = np.full((len(lengths), width), PADDING_LABEL)
    real = np.arange(width) < lengths[:, None]  # row by row, in the order of the points
    coords[real] = points * np.repeat(scale, lengths, axis=0)
    labels[real] = kinds
    return _float32(coords), torch.from_numpy(labels)


def _even(
    checked: Sequence[CheckedPrompts],
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Points (P, K, 2) and labels (P, K) of all images, if all objects have K > 0 points."""
    some = [each for each in checked if each.count]
    points = [each.points for each in some if isinstance(each.points, np.ndarray)]
    labels = [each.labels for each in some if isinstance(each.labels, np.ndarray)]
    widths = {each.shape[1] for each in points}
    if not len(points) == len(labels) == len(some) or len(widths) != 1 or widths == {0}:
        return None
    return np.concatenate(points), np.concatenate(labels)


def _float32(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
