"""The filters of candidate masks (SAM, appendix B): which of N masks pass, (N,) bool."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.automatic_masks.image_crops import Crop
from samfast.masks.boxes import near_crop_edge


def above_predicted_iou(iou: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Masks whose predicted IoU is above the threshold; all if it is 0 or less."""
    return iou > np.float32(threshold) if threshold > 0 else np.ones(len(iou), dtype=np.bool_)


def stable(stability: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Masks whose stability score reaches the threshold; all if it is 0 or less."""
    if threshold > 0:
        return stability >= np.float32(threshold)
    return np.ones(len(stability), dtype=np.bool_)


def inside_crop(boxes: NDArray[np.int64], crop: Crop) -> NDArray[np.bool_]:
    """Masks that touch no edge of the crop, except edges of the image; boxes are of the crop."""
    height, width = crop.image_size
    image = (0, 0, width, height)
    if crop.box == image:
        return np.ones(len(boxes), dtype=np.bool_)
    near: NDArray[np.bool_] = near_crop_edge(torch.from_numpy(boxes), crop.box, image).numpy()
    return ~near
