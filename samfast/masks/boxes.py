"""Boxes of masks, XYXY of a mask's first and last pixels, as the original's are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[int, int, int, int]
"""X0, Y0, X1, Y1 in pixels."""


def from_masks(masks: Tensor) -> Tensor:
    """The tightest box around each mask (original: `batched_mask_to_box`).

    masks    (..., H, W) bool
    returns  (..., 4) int64 XYXY, the last pixel included; zeros for an empty mask
    """
    height, width = masks.shape[-2:]
    if masks.numel() == 0:
        return torch.zeros((*masks.shape[:-2], 4), dtype=torch.int64, device=masks.device)
    # A maximum over bytes is many times faster than `any`.
    pixels = masks.to(torch.bool).view(torch.uint8)
    columns, rows = pixels.amax(dim=-2), pixels.amax(dim=-1)
    edges = [
        columns.argmax(dim=-1),
        rows.argmax(dim=-1),
        width - 1 - columns.flip(-1).argmax(dim=-1),
        height - 1 - rows.flip(-1).argmax(dim=-1),
    ]
    return torch.stack(edges, dim=-1) * columns.amax(dim=-1, keepdim=True)


def to_xywh(boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(..., 4) XYXY -> XYWH, last pixel minus first (original: `box_xyxy_to_xywh`)."""
    corner = boxes[..., :2]
    return np.concatenate([corner, boxes[..., 2:] - corner], axis=-1)


def near_crop_edge(
    boxes: Tensor, crop: Sequence[float], image: Sequence[float], tolerance: float = 20.0
) -> Tensor:
    """Whether boxes touch an edge of the crop inside the image (original: `is_box_near_crop_edge`).

    boxes    (N, 4) XYXY in pixels of the crop; crop and image are XYXY in pixels of the image
    returns  (N,) bool
    """
    x0, y0, _, _ = crop
    in_image = boxes + boxes.new_tensor([x0, y0, x0, y0])
    at_crop = (in_image - boxes.new_tensor(list(crop))).abs() <= tolerance
    at_image = (in_image - boxes.new_tensor(list(image))).abs() <= tolerance
    return (at_crop & ~at_image).any(dim=-1)
