"""SAM's losses: focal and dice 20:1 on the best mask, and mean squared error on predicted IoU.

Added to them: pixels near the object's border weigh more in the focal loss, and borders that a mask
has away from the object's are penalised, because those are holes, islands and torn edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_WEIGHT = 20.0

NEAR = 7
"""Side of the square around a pixel, in pixels of the mask; if the object's border crosses it, the
pixel is near the border."""


@dataclass(frozen=True)
class Weights:
    """Weights of the terms that SAM's loss lacks; 0 leaves a term out."""

    border: float = 1.0
    smooth: float = 0.1


@dataclass(frozen=True)
class Losses:
    """Means over objects: `total` is minimised, the others are logged."""

    total: Tensor
    mask: Tensor
    iou_error: Tensor
    single_iou: Tensor
    multi_iou: Tensor
    best_iou: Tensor


def near_border(truth: Tensor) -> Tensor:
    """(P, h, w) of 0 and 1: whether the object's border is near the pixel."""
    largest = F.max_pool2d(truth[:, None], NEAR, stride=1, padding=NEAR // 2)
    least = -F.max_pool2d(-truth[:, None], NEAR, stride=1, padding=NEAR // 2)
    return (largest - least)[:, 0]


def focal(
    logits: Tensor,
    truth: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    weight: float | Tensor = 1.0,
) -> Tensor:
    """Focal loss (Lin et al. 2017), mean over pixels: (..., h, w) -> (...)."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    right = torch.exp(-entropy)
    balance = alpha * truth + (1 - alpha) * (1 - truth)
    return (weight * balance * (1 - right) ** gamma * entropy).flatten(-2).mean(-1)


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss (Milletari et al. 2016): (..., h, w) -> (...)."""
    probability = logits.sigmoid()
    overlap = (probability * truth).flatten(-2).sum(-1)
    total = probability.flatten(-2).sum(-1) + truth.flatten(-2).sum(-1)
    return 1 - (2 * overlap + 1) / (total + 1)


def roughness(logits: Tensor, truth: Tensor, near: Tensor) -> Tensor:
    """The length of a mask's borders away from the object's, relative to the object's own.

    logits (P, M, h, w), truth and near (P, h, w) -> (P, M); total variation of probabilities
    """
    probability, away = logits.sigmoid(), 1 - near[:, None]
    length = ((probability[..., 1:, :] - probability[..., :-1, :]).abs() * away[..., 1:, :]).sum(
        (-2, -1)
    )
    length = length + ((probability[..., 1:] - probability[..., :-1]).abs() * away[..., 1:]).sum(
        (-2, -1)
    )
    border = (truth[:, 1:] - truth[:, :-1]).abs().sum((-2, -1))
    border = border + (truth[..., 1:] - truth[..., :-1]).abs().sum((-2, -1))
    return length / (border[:, None] + 16)


def intersection_over_union(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of the masks logits > 0: (..., h, w) -> (...)."""
    mask, real = logits > 0, truth > 0.5
    overlap = (mask & real).flatten(-2).sum(-1).float()
    return overlap / (mask | real).flatten(-2).sum(-1).clamp(min=1)


def losses(
    logits: Tensor, iou: Tensor, truth: Tensor, counts: Tensor, weights: Weights = Weights()
) -> Losses:
    """Losses of P objects.

    logits  (P, 4, h, w): of the single-mask token, then of the three for ambiguous prompts
    iou     (P, 4) predicted
    truth   (P, h, w) of 0 and 1
    counts  (P,) 1 for objects, 0 for fillers
    """
    target = truth[:, None].expand_as(logits)
    near = near_border(truth)
    emphasis = 1 + weights.border * near[:, None]
    each = FOCAL_WEIGHT * focal(logits, target, weight=emphasis) + dice(logits, target)
    if weights.smooth:
        each = each + weights.smooth * roughness(logits, truth, near)
    with torch.no_grad():
        actual = intersection_over_union(logits, target)
    single, several = each[:, 0], each[:, 1:]
    mask = single + several.min(dim=1).values
    iou_error = ((iou - actual) ** 2).mean(1)
    share = counts / counts.sum().clamp(min=1)
    chosen = actual[:, 1:].gather(1, iou[:, 1:].argmax(1, keepdim=True))[:, 0]
    return Losses(
        total=((mask + iou_error) * share).sum(),
        mask=(mask * share).sum().detach(),
        iou_error=(iou_error * share).sum().detach(),
        single_iou=(actual[:, 0] * share).sum(),
        multi_iou=(chosen * share).sum(),
        best_iou=(actual[:, 1:].max(1).values * share).sum(),
    )
