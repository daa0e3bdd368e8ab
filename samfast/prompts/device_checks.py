"""What is wrong with answers and with prompts on the device: noted there, and raised when somebody
looks.

A code an object, of the bits below. Noting one costs a kernel or two and no waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samfast.errors import NumericsError, PromptError

ANSWER, PLACE, LABEL, RAGGED = 1, 2, 4, 8

REASONS = {
    RAGGED: "labels and points are of different numbers of objects an image; give both the same "
    "offsets",
    PLACE: "a point or box lies outside the image, is NaN or infinite, or the box is empty or "
    "inverted; points are "
    "(x, y) and boxes x0, y0, x1, y1, in pixels",
    LABEL: 'a label is none of 1 (foreground), 0 (background) and -1 (the model\'s "not a point")',
    ANSWER: "the answer holds NaN or infinity; so does its mask prompt, the embedding or the "
    "weights, or their dtype "
    "is too narrow: take a recipe in bf16 or fp32",
}
"""In the order in which they are told: a wrong prompt explains a wrong answer."""


def non_finite(low_res: Tensor, iou: Tensor) -> Tensor:
    """(P,) uint8, ANSWER where an object's logits (P, M, h, w) or predicted IoU (P, M) are NaN or
    infinite.
    """
    # Sums keep NaN and infinity and read the logits once, without a mask of their size. Only logits
    # whose sum is beyond float32 would be taken for infinite, and no decoder in its right mind has
    # such.
    total = low_res.flatten(1).sum(1, dtype=torch.float32) + iou.sum(1, dtype=torch.float32)
    return (~torch.isfinite(total)).to(torch.uint8) * ANSWER


def outside_image(points: Tensor, size: Tensor) -> Tensor:
    """(P,) bool, whether any of an object's points (P, K, 2) is not in its image of size (P, 2),
    width and height.
    """
    # A tenth of a pixel more: sizes of images inside the input are rounded. NaN compares false.
    return ~((points >= -0.1) & (points <= size[:, None] + 0.1)).flatten(1).all(1)


def empty(boxes: Tensor, size: Tensor) -> Tensor:
    """(P,) bool, whether a box (P, 4) is empty, not finite or out of its image of size (P, 2),
    width and height.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    fits = (low < high) & (high > 0) & (low < size) & torch.isfinite(boxes).view(-1, 2, 2).all(1)
    return ~fits.all(1)


def ragged(coords: Any, labels: Any) -> Tensor:
    """() uint8, RAGGED if two jagged tensors of as many objects in all have other numbers of them
    an image.
    """
    if coords.offsets() is labels.offsets():
        return torch.zeros((), dtype=torch.uint8, device=coords.device)
    differ: Tensor = (coords.offsets() != labels.offsets()).any().to(torch.uint8)
    return differ * RAGGED


@dataclass(frozen=True)
class Faults:
    """The codes of some images' objects; called, it raises for the first of them that is not 0.

    codes    (P,) uint8 on the device
    images   the numbers of the images, for messages
    offsets  the objects of images[i] are offsets[i]:offsets[i + 1]; on the host, or on the device
    """

    codes: Tensor
    images: Sequence[int]
    offsets: Sequence[int] | Tensor

    def __call__(self) -> None:
        """Waits for the device. Raises PromptError for a prompt that does not fit, NumericsError
        for the rest.
        """
        codes = self.codes.cpu()
        wrong = codes.nonzero().flatten()
        if not len(wrong):
            return
        first = int(wrong[0])
        offsets = self.offsets.tolist() if isinstance(self.offsets, Tensor) else self.offsets
        place = next(i for i, stop in enumerate(offsets[1:]) if stop > first)
        code = int(codes[first])
        kind = next(bit for bit in REASONS if code & bit)
        more = f" (and {len(wrong) - 1} objects more)" if len(wrong) > 1 else ""
        error = NumericsError if kind == ANSWER else PromptError
        raise error(
            f"image {self.images[place]}, object {first - offsets[place]}{more}: {REASONS[kind]}"
        )
