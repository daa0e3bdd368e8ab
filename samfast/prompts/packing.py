"""Ragged prompts of many images -> one flat PromptBatch in the model's input frame."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.errors import PromptError
from samfast.prompts.validation import Checked, check
from samfast.types import PADDING_LABEL, PromptBatch, PromptGroup, Prompts, Size


def pack(
    prompts: Sequence[Prompts],
    original_sizes: Sequence[Size],
    input_sizes: Sequence[Size],
    mask_size: Size,
) -> PromptBatch:
    """Check the prompts of B images and pack them flat, on the host.

    original_sizes  (H, W) of each image, which the prompts' pixels are of
    input_sizes     (h, w) of each inside the model's input, which the result's pixels are of
    mask_size       (height, width) of mask prompts

    Objects with fewer points than the one with most are filled up with PADDING_LABEL. Every image
    must be prompted by the same kinds (points, boxes, masks); pack others apart. Raises
    PromptError.
    """
    checked = _check_all(prompts, original_sizes, mask_size)
    if len({_kinds(c)[:3] for c in checked}) > 1:
        raise PromptError(
            "images prompted by different kinds (points, boxes, masks) cannot share a batch"
        )
    return _pack(checked, original_sizes, input_sizes)


def group(
    prompts: Sequence[Prompts],
    original_sizes: Sequence[Size],
    input_sizes: Sequence[Size],
    mask_size: Size,
) -> list[PromptGroup]:
    """Check the prompts of B images, of any kinds, and pack those of the same kinds together;
    arguments as `pack`.

    Every image is in one of the groups. Images of equal sizes follow each other there, so that what
    is to be done with their answers at their size can be done at once. Raises PromptError, before
    anything is packed.
    """
    checked = _check_all(prompts, original_sizes, mask_size)
    found: dict[tuple[object, ...], list[int]] = {}
    for i, own in enumerate(checked):
        found.setdefault(_kinds(own), []).append(i)
    groups = []
    for images in found.values():
        images.sort(key=lambda i: (original_sizes[i], input_sizes[i]))
        batch = _pack(
            [checked[i] for i in images],
            [original_sizes[i] for i in images],
            [input_sizes[i] for i in images],
        )
        groups.append(PromptGroup(tuple(images), batch))
    return groups


def _check_all(
    prompts: Sequence[Prompts], original_sizes: Sequence[Size], mask_size: Size
) -> list[Checked]:
    if isinstance(prompts, Prompts):
        raise PromptError("one Prompts instead of a list of them, one an image; wrap it: [prompts]")
    if len(prompts) != len(original_sizes):
        raise PromptError(
            f"prompts for {len(prompts)} images but embeddings of {len(original_sizes)}; give one "
            "each"
        )
    return [
        check(own, size, mask_size, f"image {i}")
        for i, (own, size) in enumerate(zip(prompts, original_sizes, strict=True))
    ]


def _kinds(checked: Checked) -> tuple[object, ...]:
    """What images of a group have in common; masks lie on one device."""
    place = None if checked.masks is None else checked.masks.device
    return checked.points is None, checked.boxes is None, checked.masks is None, place


def _pack(
    checked: list[Checked], original_sizes: Sequence[Size], input_sizes: Sequence[Size]
) -> PromptBatch:
    offsets = tuple(accumulate((c.count for c in checked), initial=0))
    # Of each object (x, y): input pixels for each of the image's.
    scales = np.repeat(
        np.array(
            [
                (new_w / old_w, new_h / old_h)
                for (old_h, old_w), (new_h, new_w) in zip(original_sizes, input_sizes, strict=True)
            ],
            dtype=np.float64,
        ).reshape(-1, 2),
        [c.count for c in checked],
        axis=0,
    )
    coords, labels = _points(checked, scales)
    boxes = masks = None
    if checked and checked[0].boxes is not None:
        corners = np.concatenate([c.boxes for c in checked if c.boxes is not None]).reshape(
            -1, 2, 2
        )
        boxes = _float32(corners * scales[:, None]).view(-1, 4)
    if checked and checked[0].masks is not None:
        masks = torch.cat([c.masks for c in checked if c.masks is not None])
    return PromptBatch(coords, labels, boxes, masks, offsets)


def _points(
    checked: list[Checked], scales: NDArray[np.float64]
) -> tuple[Tensor | None, Tensor | None]:
    """Coordinates (P, K, 2) in input pixels and labels (P, K), filled up; scales (P, 2)."""
    if not checked or checked[0].points is None:
        return None, None
    even = _even(checked)
    if even is not None:
        coords, labels = even
        return _float32(coords * scales[:, None]), torch.from_numpy(labels)
    points = [own for c in checked if c.points is not None for own in c.points]
    kinds = [own for c in checked if c.labels is not None for own in c.labels]
    lengths = np.array([len(own) for own in points], dtype=np.int64)
    most = int(lengths.max(initial=0))
    if most == 0:
        return None, None  # no object has any; as if points had not been given
    coords = np.zeros((len(points), most, 2))
    labels = np.full((len(points), most), PADDING_LABEL)
    real = np.arange(most) < lengths[:, None]  # in rows, as points follow each other
    coords[real] = np.concatenate(points) * np.repeat(scales, lengths, axis=0)
    labels[real] = np.concatenate(kinds)
    return _float32(coords), torch.from_numpy(labels)


def _even(checked: list[Checked]) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Points (P, K, 2) and labels (P, K) of all images, if all objects have as many, at least
    one.
    """
    some = [c for c in checked if c.count]
    points = [c.points for c in some if isinstance(c.points, np.ndarray)]
    labels = [c.labels for c in some if isinstance(c.labels, np.ndarray)]
    lengths = {own.shape[1] for own in points}
    if not len(points) == len(labels) == len(some) or len(lengths) != 1 or lengths == {0}:
        return None
    return np.concatenate(points), np.concatenate(labels)


def _float32(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
