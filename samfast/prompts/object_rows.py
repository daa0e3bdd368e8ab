"""The rows of PackedPrompts: the image of each object, and the points of some objects.

On the host NumPy computes: torch would wake all of its threads for a few dozen numbers, which takes
milliseconds. No value on a GPU is read.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from samfast.device.transfer import to_device
from samfast.types import PADDING_LABEL, PackedPrompts


def on_host(values: Tensor | PackedPrompts) -> bool:
    """Whether NumPy can read the values."""
    return values.device.type == "cpu"


def move(prompts: PackedPrompts, device: torch.device) -> PackedPrompts:
    """The prompts with points, boxes and offsets on the device, without waiting; masks stay."""
    coords, labels, boxes = (
        None if values is None else to_device(values, device)
        for values in (prompts.coords, prompts.labels, prompts.boxes)
    )
    offsets = to_device(offsets_of(prompts), device)
    return replace(prompts, coords=coords, labels=labels, boxes=boxes, offsets=offsets)


def offsets_of(prompts: PackedPrompts) -> Tensor:
    """(B + 1,) int64, where they are."""
    offsets = prompts.offsets
    return offsets if isinstance(offsets, Tensor) else torch.tensor(offsets)


def image_count(prompts: PackedPrompts) -> int:
    """B."""
    return len(prompts.offsets) - 1


def image_of(prompts: PackedPrompts) -> Tensor:
    """(P,) int64: the index of each object's image among the embeddings."""
    if prompts.images is None:
        images = torch.arange(image_count(prompts), device=prompts.device)
    else:
        images = to_device(torch.tensor(prompts.images, dtype=torch.int64), prompts.device)
    return per_object(prompts, images)


def per_object(prompts: PackedPrompts, values: Tensor) -> Tensor:
    """(P, ...): of values (B, ...) of images, that of each object's image."""
    offsets = offsets_of(prompts)
    if on_host(prompts):
        return torch.from_numpy(np.repeat(values.numpy(), np.diff(offsets.numpy()), axis=0))
    # With its size given, it is not read from the device.
    return torch.repeat_interleave(values, offsets.diff(), dim=0, output_size=len(prompts))


def points_of(prompts: PackedPrompts, rows: slice) -> tuple[Tensor | None, Tensor | None]:
    """Coordinates and labels of some objects; on the host without columns of padding alone."""
    if prompts.coords is None or prompts.labels is None:
        return None, None
    coords, labels = prompts.coords[rows], prompts.labels[rows]
    if not on_host(prompts):
        return coords, labels
    count = int((labels.numpy() != PADDING_LABEL).sum(1).max())
    return (coords[:, :count], labels[:, :count]) if count else (None, None)


def has_padding(prompts: PackedPrompts, labels: Tensor | None) -> bool:
    """Whether some of these labels are padding; on a GPU, whether they may be."""
    if labels is None:
        return False
    if on_host(prompts):
        return bool((labels.numpy() == PADDING_LABEL).any())
    return labels.shape[1] > 1 or prompts.boxes is not None or prompts.masks is not None
