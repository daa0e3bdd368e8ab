"""Low-resolution logits to logits of the image's size (original: `Sam.postprocess_masks`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.types import Size

CPU_BUDGET = 1 << 25
GPU_BUDGET = 1 << 30
"""Bytes of float logits held at a time. On a CPU few, so that the cache holds most of them and no
block exceeds 32 MiB, which glibc would return to the system and get anew, page by page."""


def logits(low_res: Tensor, input_size: Size, original_size: Size, side: int) -> Tensor:
    """The original's logits to the last bit: resized to the model's square, cropped, resized.

    low_res        (N, M, h, w) logits of the decoder, h = w = side / 4
    input_size     (height, width) of the image inside the square, in pixels
    original_size  (height, width) of the image
    side           the square's side in pixels
    returns        (N, M, H, W) float32
    """
    height, width = low_res.shape[-2:]
    up_h, up_w = side, side
    if side % height == 0 and side % width == 0:
        # Only the image, and one row and column more, with which its border is interpolated. The
        # factor stays a whole number, so every result is the same to the last bit.
        factor_h, factor_w = side // height, side // width
        height = min(height, -(-input_size[0] // factor_h) + 1)
        width = min(width, -(-input_size[1] // factor_w) + 1)
        low_res = low_res[..., :height, :width]
        up_h, up_w = height * factor_h, width * factor_w
    square = F.interpolate(low_res.float(), (up_h, up_w), mode="bilinear", align_corners=False)
    inside = square[..., : input_size[0], : input_size[1]]
    if inside.shape[-2:] == tuple(original_size):
        return inside
    return F.interpolate(inside, tuple(original_size), mode="bilinear", align_corners=False)


def masks_per_chunk(original_size: Size, side: int, device: torch.device) -> int:
    """Masks upscaled at a time, at least one, whose logits stay within the budget."""
    budget = CPU_BUDGET if device.type == "cpu" else GPU_BUDGET
    return max(1, budget // (4 * (side * side + original_size[0] * original_size[1])))
