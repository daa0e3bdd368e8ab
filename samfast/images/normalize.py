"""Bytes of images in their squares to normalised pixels, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.types import PIXEL_MEAN, PIXEL_STD


def normalize(pixels: Tensor, sizes: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32 (original: `Sam.preprocess`), bit for bit what the
    CPU makes.

    sizes  (B, 2) int32, (h, w) of each image in its square; outside the result is 0, whatever the
           bytes are there
    """
    value = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    for plane, mean, std in zip(value.unbind(1), PIXEL_MEAN, PIXEL_STD, strict=True):
        # By tensors: on a GPU torch divides by a number as a product with its inverse, which rounds
        # differently.
        plane.sub_(plane.new_full((), mean)).div_(plane.new_full((), std))
    place = torch.arange(pixels.shape[1], device=pixels.device)
    heights, widths = sizes.view(-1, 2, 1, 1, 1).unbind(1)
    return value.masked_fill_((place[:, None] >= heights) | (place >= widths), 0.0)
