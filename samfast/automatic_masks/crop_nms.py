"""Non-maximum suppression between the crops of an image."""

from __future__ import annotations

import numpy as np

from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.masks import nms


def remove_crop_duplicates(masks: GeneratedMasks, threshold: float) -> GeneratedMasks:
    """Of masks whose boxes' IoU is above the threshold, only that of the smallest crop stays."""
    width, height = (masks.crop_boxes[:, 2:] - masks.crop_boxes[:, :2]).T
    scores = np.float32(1) / (width * height).astype(np.float32)
    return masks.pick(nms.keep(masks.boxes, scores, threshold))
