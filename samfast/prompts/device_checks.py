"""Deferred checks of prompts and answers: flags set on the device, raised when they are read.

A code per object, of the bits below. Setting one costs a kernel or two and does not wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samfast.device.transfer import to_device
from samfast.errors import NumericsError, PromptError
from samfast.prompts.object_rows import on_host, per_object
from samfast.types import PADDING_LABEL, PackedPrompts, Size

NON_FINITE, OUTSIDE, LABEL, RAGGED = 1, 2, 4, 8

REASONS = {
    RAGGED: "labels and points are of different numbers of objects an image; give both the same "
    "offsets",
    OUTSIDE: "a point or box lies outside the image, is NaN or infinite, or the box is empty or "
    "inverted; points are (x, y) and boxes x0, y0, x1, y1, in pixels",
    LABEL: 'a label is none of 1 (foreground), 0 (background) and -1 (the model\'s "not a point")',
    NON_FINITE: "the answer holds NaN or infinity; so does its mask prompt, the embedding or the "
    "weights, or their dtype is too narrow: take a recipe in bf16 or fp32",
}
"""In the order of reporting: a wrong prompt explains a wrong answer."""


def non_finite(low_res: Tensor, iou: Tensor) -> Tensor:
    """(P,) uint8, NON_FINITE where an object's logits (P, M, h, w) or predicted IoU (P, M) are NaN
    or infinite.
    """
    # Sums keep NaN and infinity and read the logits once, without a mask of their size. Finite
    # logits whose sum exceeds float32 would be reported too; no decoder gives such logits.
    total = low_res.flatten(1).sum(1, dtype=torch.float32) + iou.sum(1, dtype=torch.float32)
    return (~torch.isfinite(total)).to(torch.uint8) * NON_FINITE


def wrong_prompts(prompts: PackedPrompts, sizes: Sequence[Size]) -> Tensor:
    """(P,) uint8, the codes of prompts that do not fit their images, on the prompts' device; on the
    host by NumPy, whose calls take a third of those of torch.

    sizes  (height, width) of each image in input pixels
    """
    heights_widths = np.array(sizes, np.float32).reshape(-1, 2)
    widths_heights = torch.from_numpy(heights_widths[:, ::-1].copy())
    size: Any = per_object(prompts, to_device(widths_heights, prompts.device))
    coords: Any = prompts.coords
    labels: Any = prompts.labels
    boxes: Any = prompts.boxes
    if on_host(prompts):
        # As float32, which the decoder gets: NumPy has no bfloat16.
        coords, boxes, size = (
            None if each is None else each.detach().float().numpy()
            for each in (coords, boxes, size)
        )
        labels = None if labels is None else labels.detach().numpy()
    codes: Any = 0
    if coords is not None and labels is not None:
        padding = labels == PADDING_LABEL
        known = padding | (labels == 1) | (labels == 0) | (labels == -1)
        wrong = ~known.all(1)
        if boxes is None and prompts.masks is None:
            wrong |= padding.all(1)
        codes = wrong * LABEL | _outside_image(coords, padding, size) * OUTSIDE
    if boxes is not None:
        codes = codes | _empty_or_outside(boxes, size) * OUTSIDE
    if isinstance(codes, int):  # masks alone
        return torch.zeros(len(prompts), dtype=torch.uint8, device=prompts.device)
    return torch.as_tensor(codes).to(torch.uint8)


def _outside_image(points: Any, padding: Any, size: Any) -> Any:
    """(P,) bool, whether any of an object's points (P, K, 2), padding aside, lies outside its image
    of size (P, 2), width and height; of arrays or of tensors.
    """
    # A tolerance of 0.1 pixels: sizes of images inside the input are rounded. NaN compares false.
    inside = (points >= -0.1) & (points <= size[:, None] + 0.1)
    return ~(inside.all(2) | padding).all(1)


def _empty_or_outside(boxes: Any, size: Any) -> Any:
    """(P,) bool, whether a box (P, 4) is empty, not finite or outside its image of size (P, 2); of
    arrays or of tensors.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    finite = (abs(boxes) < math.inf).all(1)
    return ~(((low < high) & (high > 0) & (low < size)).all(1) & finite)


def ragged(coords: Any, labels: Any) -> Tensor:
    """() uint8, RAGGED if two jagged tensors have different offsets."""
    if coords.offsets() is labels.offsets():
        return torch.zeros((), dtype=torch.uint8, device=coords.device)
    differ: Tensor = (coords.offsets() != labels.offsets()).any().to(torch.uint8)
    return differ * RAGGED


@dataclass(frozen=True)
class DeviceChecks:
    """The codes of some images' objects; a call raises for the first code that is not 0.

    codes    (P,) uint8 on the device
    images   the numbers of the images, for messages
    offsets  the objects of images[i] are offsets[i]:offsets[i + 1]; on the host, or on the device
    """

    codes: Tensor
    images: Sequence[int]
    offsets: Sequence[int] | Tensor

    def __call__(self) -> None:
        """Wait for the device; PromptError for a wrong prompt, NumericsError for the rest."""
        codes = self.codes.cpu()
        wrong = codes.nonzero().flatten()
        if not len(wrong):
            return
        first = int(wrong[0])
        offsets = self.offsets.tolist() if isinstance(self.offsets, Tensor) else self.offsets
        index = next(i for i, stop in enumerate(offsets[1:]) if stop > first)
        code = int(codes[first])
        kind = next(bit for bit in REASONS if code & bit)
        more = f" (and {len(wrong) - 1} objects more)" if len(wrong) > 1 else ""
        error = NumericsError if kind == NON_FINITE else PromptError
        raise error(
            f"image {self.images[index]}, object {first - offsets[index]}{more}: {REASONS[kind]}"
        )
