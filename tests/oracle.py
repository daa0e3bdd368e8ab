"""The original `segment_anything` 1.0 as the parity oracle, on a stand-in for torchvision.

torchvision has no CPU build for every CPU torch, and the original needs only four functions of it.
They are written here plainly, from torchvision's documentation, independently of samfast's code.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import numpy as np
import torch
from PIL import Image


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """torchvision.ops.boxes.box_area."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """torchvision.ops.boxes.batched_nms, one box at a time: greedy, best first, per category."""
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    kept: list[int] = []
    for i in order:
        rivals = boxes[[j for j in kept if idxs[j] == idxs[i]]]
        corner0 = torch.maximum(boxes[i, :2], rivals[:, :2])
        corner1 = torch.minimum(boxes[i, 2:], rivals[:, 2:])
        inter = (corner1 - corner0).clamp(min=0).prod(dim=1)
        union = box_area(boxes[i : i + 1]) + box_area(rivals) - inter
        iou = (inter / union).double()  # torchvision's C++ compares in float64
        if not (iou > iou_threshold).any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def to_pil_image(image: np.ndarray[Any, Any]) -> Image.Image:
    """torchvision.transforms.functional.to_pil_image for HWC or HW uint8."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(image))


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """torchvision.transforms.functional.resize of a PIL image: Pillow's bilinear."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def load() -> Any:
    """The original package, imported under its own name even while samfast stands in for it."""
    names = [
        "torchvision",
        "torchvision.ops",
        "torchvision.ops.boxes",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    ]
    saved = {n: sys.modules.get(n) for n in names}
    modules = {n: types.ModuleType(n) for n in names}
    modules["torchvision.ops.boxes"].batched_nms = batched_nms  # type: ignore[attr-defined]
    modules["torchvision.ops.boxes"].box_area = box_area  # type: ignore[attr-defined]
    functional = modules["torchvision.transforms.functional"]
    functional.resize = resize  # type: ignore[attr-defined]
    functional.to_pil_image = to_pil_image  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        return importlib.import_module("segment_anything")
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
