"""Let a torchvision be imported whose compiled part does not fit the installed torch.

torchvision's wheels fit one build of torch; for the CPU's there is none in some package indexes.
Then its only operation that the clients call, NMS, is this one. Python runs the file when it starts
with its folder on PYTHONPATH.
"""

from __future__ import annotations

import torch
from torch import Tensor

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS, best first, with the comparison in float64 as torchvision's."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    waiting = torch.argsort(scores, descending=True, stable=True)
    kept: list[Tensor] = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        upper = torch.maximum(boxes[best, :2], boxes[waiting, :2])
        lower = torch.minimum(boxes[best, 2:], boxes[waiting, 2:])
        shared = (lower - upper).clamp(min=0).prod(dim=1)
        iou = (shared / (area[best] + area[waiting] - shared)).double()
        waiting = waiting[~(iou > iou_threshold)]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64)


_library.impl("nms", _nms, "CPU")

import torchvision.ops.boxes  # noqa: E402

torchvision.ops.boxes._assert_has_ops = lambda: None
