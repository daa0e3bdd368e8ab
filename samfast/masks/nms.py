"""Greedy non-maximum suppression of boxes, with torchvision's results (`torchvision.ops.nms`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.device.transfer import AsyncHostCopy, to_device
from samfast.device.triton_support import has_triton

MAX_DEVICE_BOXES = 16384
"""Boxes compared all with all on a GPU, which takes 32 MiB of bits; more are compared on the host,
row by row."""


def keep(
    boxes: NDArray[np.generic], scores: NDArray[np.generic], threshold: float
) -> NDArray[np.int64]:
    """The boxes that stay when every box that overlaps a better one too much is dropped.

    boxes      (N, 4) XYXY
    scores     (N,); of equal scores the earlier box is the better one
    threshold  a box is dropped if its IoU with a better one that stays is above it
    returns    indices of the boxes that stay, best first
    """
    order = np.argsort(-scores.astype(np.float32), kind="stable")
    # float32 and torchvision's order of operations: decisions at the threshold must not differ.
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
        # Two boxes of no area: NaN, which suppresses nothing.
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = inter / (area[best] + area[rest] - inter)
        rest = rest[~(iou.astype(np.float64) > threshold)]
    return np.asarray(kept, dtype=np.int64)


def start_keeping(
    boxes: NDArray[np.generic], scores: NDArray[np.generic], threshold: float, device: torch.device
) -> Callable[[], NDArray[np.int64]]:
    """Queue `keep` on the device where it has Triton; elsewhere it is done at once, on the host.

    returns  a function that waits for the device and gives what `keep` returns
    """
    if not has_triton(device) or not 0 < len(boxes) <= MAX_DEVICE_BOXES:
        kept = keep(boxes, scores, threshold)
        return lambda: kept
    from samfast.masks.kernels import box_overlaps, greedy_nms

    order = np.argsort(-scores.astype(np.float32), kind="stable")
    overlaps = box_overlaps.launch(to_device(boxes[order], device), threshold)
    stays = AsyncHostCopy(greedy_nms.launch(overlaps))
    return lambda: order[stays.wait()[0]]
