"""The prompts of `SamFast.predict_batch`: packed or jagged, on the host or on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samfast.device.transfer import to_device
from samfast.errors import PromptError
from samfast.prompts import device_checks
from samfast.prompts.device_checks import DeviceChecks
from samfast.prompts.object_rows import move, offsets_of, on_host, per_object
from samfast.types import Embeddings, PackedPrompts


def batch_prompts(
    prompts: PackedPrompts | Tensor,
    labels: Tensor | None,
    embeddings: Embeddings,
    device: torch.device,
) -> tuple[PackedPrompts, DeviceChecks]:
    """The prompts on the host or on the device, without reading a value there, and their checks.

    prompts, labels  as `SamFast.predict_batch`
    device           of the model, to which prompts on another device move

    Raises PromptError for other shapes, and for prompts on the host that do not fit their images.
    """
    images = range(len(embeddings))
    ragged = None
    if isinstance(prompts, PackedPrompts):
        if labels is not None:
            raise PromptError("labels beside a PromptBatch, which has its own; leave them out")
        if len(prompts.offsets) - 1 != len(images):
            raise PromptError(
                f"prompts for {len(prompts.offsets) - 1} images but embeddings of {len(images)}; "
                "give one each"
            )
        packed = prompts
    else:
        packed = _pack_jagged(prompts, labels, embeddings)
        ragged = device_checks.ragged(prompts, labels)
    if not on_host(packed):
        packed = move(packed, device)
    codes = device_checks.wrong_prompts(packed, embeddings.input_sizes)
    if ragged is not None:
        codes |= ragged.to(codes.device)
    checks = DeviceChecks(codes, images, offsets_of(packed))
    if on_host(packed):
        checks()
    return packed, checks


def _pack_jagged(coords: Any, labels: Any, embeddings: Embeddings) -> PackedPrompts:
    """Pack points (B, n, K, 2) and labels (B, n, K), jagged over n, without reading a value.

    Raises PromptError for tensors of another layout or shape, or of another number of images.
    """
    _check(coords, labels, len(embeddings))
    points: Tensor = coords.values()
    scales = torch.tensor(
        [
            (new_w / old_w, new_h / old_h)
            for (old_h, old_w), (new_h, new_w) in zip(
                embeddings.original_sizes, embeddings.input_sizes, strict=True
            )
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
