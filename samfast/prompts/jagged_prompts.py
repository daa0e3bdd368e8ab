"""Clicks of many images as jagged nested tensors: whether they are what they are to be, seen by
their shapes only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samfast.errors import PromptError


def check_jagged(coords: Tensor, labels: Tensor | None, images: int) -> None:
    """Raise PromptError unless coords are (B, n, K, 2) and labels (B, n, K), jagged over n, for so
    many images.

    No value is looked at: they may lie on a device.
    """
    if not isinstance(coords, Tensor) or coords.layout is not torch.jagged:
        found = f"a {coords.layout} tensor" if isinstance(coords, Tensor) else type(coords).__name__
        raise PromptError(
            f"{found} instead of a PromptBatch or points as a nested tensor; make one an image of "
            "(n, K, 2): "
            "torch.nested.nested_tensor(points, layout=torch.jagged)"
        )
    if not isinstance(labels, Tensor) or labels.layout is not torch.jagged:
        raise PromptError(
            "points without labels as a nested tensor of the same images; give labels (B, n, K), 1 "
            "foreground or "
            "0 background, for each"
        )
    _check(coords, "points", (2,), images)
    _check(labels, "labels", (), images)
    points, kinds = coords.values(), labels.values()
    if points.shape[:2] != kinds.shape or points.device != kinds.device:
        raise PromptError(
            f"labels for {' x '.join(map(str, kinds.shape))} points on {kinds.device} and "
            f"{' x '.join(map(str, points.shape[:2]))} points on {points.device}; give one for each"
        )
    if points.shape[1] == 0:
        raise PromptError("objects of no points at all; leave them out")


def _check(values: Any, name: str, last: tuple[int, ...], images: int) -> None:
    shape = tuple(values.shape)
    own = values.values().shape
    if (
        len(shape) != 3 + len(last)
        or not all(isinstance(n, int) for n in shape[2:])
        or tuple(own[2:]) != last
        or values.lengths() is not None
    ):
        wanted = ", ".join(("B", "n", "K", *map(str, last)))
        raise PromptError(
            f"{name} of shape {shape} instead of ({wanted}), jagged over n and without gaps"
        )
    if shape[0] != images:
        raise PromptError(f"{name} for {shape[0]} images but embeddings of {images}; give one each")
