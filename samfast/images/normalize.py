"""Padded images of bytes to normalised pixels, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.types import PIXEL_MEAN, PIXEL_STD


def normalize(pixels: Tensor, sizes: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32 (original: `Sam.preprocess`).

    sizes  (B, 2) int32, (h, w) of each image in its square; the result is 0 outside

    The result has the same bits on every device.
    """
    value = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    for plane, mean, std in zip(value.unbind(1), PIXEL_MEAN, PIXEL_STD, strict=True):
        # By tensors: on a GPU torch divides by a number as a product with its rounded inverse.
        plane.sub_(plane.new_full((), mean)).div_(plane.new_full((), std))
    place = torch.arange(pixels.shape[1], device=pixels.device)
    heights, widths = sizes.view(-1, 2, 1, 1, 1).unbind(1)
    return value.masked_fill_((place[:, None] >= heights) | (place >= widths), 0.0)
