"""Points of many images as jagged nested tensors -> PackedPrompts, where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from samfast.device.transfer import to_device
from samfast.errors import PromptError
from samfast.prompts.object_rows import per_object
from samfast.types import PackedPrompts, Size


def pack_jagged(
    coords: Any,
    labels: Any,
    original_sizes: Sequence[Size],
    input_sizes: Sequence[Size],
) -> PackedPrompts:
    """Pack points (B, n, K, 2) and labels (B, n, K), jagged over n, without reading a value.

    original_sizes  (H, W) of each image, whose pixels the points are in
    input_sizes     (h, w) of each image inside the model's input, whose pixels the result is in

    Raises PromptError for tensors of another layout or shape, or of another number of images.
    """
    _check(coords, labels, len(original_sizes))
    points: Tensor = coords.values()
    scales = torch.tensor(
        [
            (new_w / old_w, new_h / old_h)
            for (old_h, old_w), (new_h, new_w) in zip(original_sizes, input_sizes, strict=True)
        ],
        dtype=torch.float64,
    )
    packed = PackedPrompts(points, labels.values(), None, None, coords.offsets().long())
    factors = per_object(packed, to_device(scales, points.device))
    # In double precision and rounded once, as `pack` does.
    moved = (points.double() * factors[:, None]).float()
    return PackedPrompts(moved, packed.labels, None, None, packed.offsets)


def _check(coords: Any, labels: Any, images: int) -> None:
    if not isinstance(coords, Tensor) or coords.layout is not torch.jagged:
        given = f"a {coords.layout} tensor" if isinstance(coords, Tensor) else type(coords).__name__
        raise PromptError(
            f"{given} instead of a PromptBatch or points as a nested tensor; make one of (n, K, 2) "
            "per image: torch.nested.nested_tensor(points, layout=torch.jagged)"
        )
    if not isinstance(labels, Tensor) or labels.layout is not torch.jagged:
        raise PromptError(
            "points without labels as a nested tensor of the same images; give labels (B, n, K), "
            "1 foreground or 0 background, for each"
        )
    _check_shape(coords, "points", (2,), images)
    _check_shape(labels, "labels", (), images)
    points, kinds = coords.values(), labels.values()
    if points.shape[:2] != kinds.shape or points.device != kinds.device:
        raise PromptError(
            f"labels for {' x '.join(map(str, kinds.shape))} points on {kinds.device} and "
            f"{' x '.join(map(str, points.shape[:2]))} points on {points.device}; give one for each"
        )
    if points.shape[1] == 0:
        raise PromptError("objects of no points at all; leave them out")


def _check_shape(tensor: Any, name: str, last: tuple[int, ...], images: int) -> None:
    shape = tuple(tensor.shape)
    if (
        len(shape) != 3 + len(last)
        or not all(isinstance(n, int) for n in shape[2:])
        or tuple(tensor.values().shape[2:]) != last
        or tensor.lengths() is not None
    ):
        wanted = ", ".join(("B", "n", "K", *map(str, last)))
        raise PromptError(
            f"{name} of shape {shape} instead of ({wanted}), jagged over n and without gaps"
        )
    if shape[0] != images:
        raise PromptError(f"{name} for {shape[0]} images but embeddings of {images}; give one each")
