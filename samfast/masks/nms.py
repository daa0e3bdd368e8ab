"""Greedy non-maximum suppression of boxes, with torchvision's results (`torchvision.ops.nms`)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samfast.masks.op import fused
from samfast.masks.packed import BITS, bits, words
from samfast.masks.reading import Reading, Steps, there

MOST = 16384
"""Boxes compared all with all on a GPU, which takes 32 MiB of bits; more are compared on the host, row by row."""

_PAIRS = 1 << 20
"""Pairs compared at a time on a GPU, which takes some 30 bytes each."""


def keep(boxes: NDArray[np.generic], scores: NDArray[np.generic], threshold: float) -> NDArray[np.int64]:
    """Which boxes stay when every box that overlaps a better one too much goes.

    boxes      (N, 4) XYXY
    scores     (N,); of equal scores the earlier box is the better one
    threshold  a box goes if its IoU with a better one that stays is above it
    returns    indices of the boxes that stay, best first
    """
    order = np.argsort(-scores.astype(np.float32), kind="stable")
    # float32 throughout, and the same order of operations: a decision at the threshold must not differ.
    x0, y0, x1, y1 = boxes.astype(np.float32)[order].T
    area = (x1 - x0) * (y1 - y0)
    rest = np.arange(len(order))
    kept: list[int] = []
    while len(rest):
        best, rest = rest[0], rest[1:]
        kept.append(int(order[best]))
        width = np.minimum(x1[best], x1[rest]) - np.maximum(x0[best], x0[rest])
        height = np.minimum(y1[best], y1[rest]) - np.maximum(y0[best], y0[rest])
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore", divide="ignore"):  # two boxes of no area: NaN suppresses nothing
            iou = inter / (area[best] + area[rest] - inter)
        rest = rest[~(iou.astype(np.float64) > threshold)]
    return np.asarray(kept, dtype=np.int64)


def keep_there(
    boxes: NDArray[np.generic], scores: NDArray[np.generic], threshold: float, device: torch.device
) -> Steps[NDArray[np.int64]]:
    """As `keep`, on that device where this is a GPU, which is then waited for once."""
    if not fused(device) or not 0 < len(boxes) <= MOST:
        return keep(boxes, scores, threshold)
    from samfast.masks.kernels.greedy import launch

    order = np.argsort(-scores.astype(np.float32), kind="stable")
    stays = Reading(launch(overlaps(there(boxes[order], device), threshold)))
    yield
    kept: NDArray[np.int64] = order[stays()[0]]
    return kept


def overlaps(boxes: Tensor, threshold: float) -> Tensor:
    """Which pairs of boxes (N, 4) XYXY have an IoU above the threshold, as bits (N, ceil(N / 32)) int32.

    Bit b of word k of row i is about the boxes i and 32 k + b. The numbers are `keep`'s to the last bit.
    """
    count = len(boxes)
    found = boxes.new_empty((count, words(count)), dtype=torch.int32)
    x0, y0, x1, y1 = boxes.float().unbind(1)
    area = (x1 - x0) * (y1 - y0)
    step = max(1, _PAIRS // max(1, count))
    bit = bits(boxes.device)
    for start in range(0, count, step):
        own = slice(start, start + step)
        width = torch.minimum(x1[own, None], x1) - torch.maximum(x0[own, None], x0)
        height = torch.minimum(y1[own, None], y1) - torch.maximum(y0[own, None], y0)
        inter = width.clamp(min=0) * height.clamp(min=0)
        iou = inter / (area[own, None] + area - inter)
        above = F.pad(iou.double() > threshold, (0, words(count) * BITS - count))
        found[own] = (above.view(len(iou), -1, BITS).to(torch.int32) << bit).sum(-1, dtype=torch.int32)
    return found
