"""The prompts of `SamFast.predict_batch`: packed or jagged, on the host or on the device."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from samfast.device.transfer import to_device
from samfast.errors import PromptError, shown
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
        count = _length(prompts.offsets) - 1
        if count != len(images):
            raise PromptError(
                f"prompts for {count} images but embeddings of {len(images)}; give one each"
            )
        _check_packed(prompts, embeddings, device)
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


def _length(offsets: Any) -> int:
    """B + 1; PromptError unless the offsets are numbers in a row."""
    if isinstance(offsets, Tensor):
        if offsets.is_nested or offsets.layout != torch.strided or offsets.ndim != 1:
            raise PromptError("the offsets of a PromptBatch are no tensor of shape (B + 1,)")
        if offsets.dtype not in (torch.int64, torch.int32):
            raise PromptError(f"the offsets of a PromptBatch are {offsets.dtype}; give int64")
    elif not isinstance(offsets, Sequence) or not _are_integers(offsets):
        raise PromptError(f"the offsets of a PromptBatch are {shown(offsets)}; give B + 1 numbers")
    return len(offsets)


def _are_integers(values: Sequence[Any]) -> bool:
    """Whether all values are integers; asking the abstract class takes long for many of them."""
    return set(map(type, values)) <= {int} or all(isinstance(each, Integral) for each in values)


def _check_packed(prompts: PackedPrompts, embeddings: Embeddings, device: torch.device) -> None:
    """PromptError unless the shapes of a caller's PromptBatch fit each other; reads no value on a
    device.
    """
    side = tuple(4 * n for n in embeddings.features.shape[-2:])  # of a mask prompt
    given = {}
    for name, value, shape in (
        ("coords", prompts.coords, (None, None, 2)),
        ("labels", prompts.labels, (None, None)),
        ("boxes", prompts.boxes, (None, 4)),
        ("masks", prompts.masks, (None, 1, *side)),
    ):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise PromptError(f"{name} of a PromptBatch are {shown(value)}; give a tensor")
        plain = not value.is_nested and value.layout == torch.strided
        plain &= not value.is_meta or device.type == "meta"  # which has no values
        if not plain or value.is_complex() or value.is_quantized:
            raise PromptError(
                f"{name} of a PromptBatch are {value.dtype}, {value.layout}, on "
                f"{value.device}; give dense real numbers"
            )
        if value.ndim != len(shape) or any(
            n is not None and n != m for n, m in zip(shape, value.shape, strict=True)
        ):
            wanted = ", ".join("PK"[i] if n is None else str(n) for i, n in enumerate(shape))
            raise PromptError(
                f"{name} of a PromptBatch are of shape {tuple(value.shape)} instead of ({wanted})"
            )
        given[name] = value
    if ("coords" in given) != ("labels" in given):
        raise PromptError("coords and labels of a PromptBatch go together; give both or neither")
    if "coords" in given and given["coords"].shape[:2] != given["labels"].shape:
        raise PromptError("coords and labels of a PromptBatch are of different numbers of points")
    if len({len(value) for value in given.values()}) != 1:
        raise PromptError(
            "a PromptBatch of no prompts, or of different numbers of objects: "
            + ", ".join(f"{len(value)} {name}" for name, value in given.items())
        )
    _check_places(prompts, len(next(iter(given.values()))), len(embeddings))


def _check_places(prompts: PackedPrompts, objects: int, images: int) -> None:
    offsets = prompts.offsets
    if not isinstance(offsets, Tensor) or offsets.device.type == "cpu":
        places = list(map(int, offsets))
        if places[0] != 0 or places[-1] != objects or places != sorted(places):
            raise PromptError(
                f"the offsets of a PromptBatch are {shown(places)}; they ascend from 0 to its "
                f"{objects} objects"
            )
    of = prompts.images
    if of is not None and not (
        isinstance(of, Sequence)
        and len(of) == len(offsets) - 1
        and _are_integers(of)
        and all(0 <= image < images for image in of)
    ):
        raise PromptError(
            f"the images of a PromptBatch are {shown(of)}; give numbers below {images}, one an "
            "image"
        )


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
