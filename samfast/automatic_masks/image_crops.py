"""Overlapping crops of an image, in layers of 4, 16, ... (original: `generate_crop_boxes`)."""

from __future__ import annotations

from itertools import product

import torch.nn.functional as F
from torch import Tensor

from samfast.masks.boxes import Box
from samfast.types import Size


def crop_boxes(size: Size, layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """The whole image and its crops, each with the number of its layer, the image's being 0.

    size           (height, width) of the image in pixels
    overlap_ratio  overlap of neighbouring crops of the first layer, as a share of the short side;
                   half of it in the next layer, and so on
    """
    height, width = size
    crops = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / per_side))
        crop_w = _length(width, per_side, overlap)
        crop_h = _length(height, per_side, overlap)
        for column, row in product(range(per_side), range(per_side)):
            x0, y0 = column * (crop_w - overlap), row * (crop_h - overlap)
            crops.append(((x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)), layer))
    return crops


def _length(whole: int, count: int, overlap: int) -> int:
    """Side of `count` equal crops that overlap by so many pixels and cover the whole, rounded
    up.
    """
    return -(-(overlap * (count - 1) + whole) // count)


def uncrop(masks: Tensor, crop: Box, size: Size) -> Tensor:
    """Masks of a crop (N, h, w) -> of the image (N, H, W), false outside the crop."""
    height, width = size
    x0, y0, x1, y1 = crop
    if (x0, y0, x1, y1) == (0, 0, width, height):
        return masks
    return F.pad(masks, (x0, width - x1, y0, height - y1))
