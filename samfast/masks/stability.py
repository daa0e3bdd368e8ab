"""The stability score: how much a mask changes when its threshold moves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def score(logits: Tensor, threshold: float, offset: float) -> Tensor:
    """IoU of the masks at `threshold` plus and minus `offset` (original:
    `calculate_stability_score`).

    logits   (..., H, W)
    returns  (...) float32; NaN where both masks are empty
    """
    # The mask at the higher threshold lies inside the other, so they are intersection and union.
    return areas(logits > threshold + offset) / areas(logits > threshold - offset)


def areas(masks: Tensor) -> Tensor:
    """(..., H, W) bool -> (...) int64, the number of true pixels."""
    if masks.device.type != "cpu":
        return masks.sum(dim=(-2, -1))
    flat = masks.flatten(0, -3).numpy() if masks.dim() > 2 else masks[None].numpy()
    # torch's sums of bool are an order of magnitude slower on a CPU.
    counts = [int(np.count_nonzero(mask)) for mask in flat]
    return torch.tensor(counts, dtype=torch.int64).view(masks.shape[:-2])
