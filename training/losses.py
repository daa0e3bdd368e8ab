"""SAM's losses: focal and dice 20:1 on the best mask, and mean squared error on predicted IoU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_WEIGHT = 20.0


@dataclass(frozen=True)
class Losses:
    """Means over objects: `total` is minimised, the others are logged."""

    total: Tensor
    mask: Tensor
    iou_error: Tensor
    single_iou: Tensor
    multi_iou: Tensor
    best_iou: Tensor


def focal(logits: Tensor, truth: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al. 2017), mean over pixels: (..., h, w) -> (...)."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    right = torch.exp(-entropy)
    weight = alpha * truth + (1 - alpha) * (1 - truth)
    return (weight * (1 - right) ** gamma * entropy).flatten(-2).mean(-1)


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss (Milletari et al. 2016): (..., h, w) -> (...)."""
    probability = logits.sigmoid()
    overlap = (probability * truth).flatten(-2).sum(-1)
    total = probability.flatten(-2).sum(-1) + truth.flatten(-2).sum(-1)
    return 1 - (2 * overlap + 1) / (total + 1)


def intersection_over_union(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of the masks logits > 0: (..., h, w) -> (...)."""
    mask, real = logits > 0, truth > 0.5
    overlap = (mask & real).flatten(-2).sum(-1).float()
    return overlap / (mask | real).flatten(-2).sum(-1).clamp(min=1)


def losses(logits: Tensor, iou: Tensor, truth: Tensor, counts: Tensor) -> Losses:
    """Losses of P objects.

    logits  (P, 4, h, w): of the single-mask token, then of the three for ambiguous prompts
    iou     (P, 4) predicted
    truth   (P, h, w) of 0 and 1
    counts  (P,) 1 for objects, 0 for fillers
    """
    target = truth[:, None].expand_as(logits)
    each = FOCAL_WEIGHT * focal(logits, target) + dice(logits, target)
    with torch.no_grad():
        actual = intersection_over_union(logits, target)
    single, several = each[:, 0], each[:, 1:]
    mask = single + several.min(dim=1).values
    iou_error = ((iou - actual) ** 2).mean(1)
    weight = counts / counts.sum().clamp(min=1)
    chosen = actual[:, 1:].gather(1, iou[:, 1:].argmax(1, keepdim=True))[:, 0]
    return Losses(
        total=((mask + iou_error) * weight).sum(),
        mask=(mask * weight).sum().detach(),
        iou_error=(iou_error * weight).sum().detach(),
        single_iou=(actual[:, 0] * weight).sum(),
        multi_iou=(chosen * weight).sum(),
        best_iou=(actual[:, 1:].max(1).values * weight).sum(),
    )
