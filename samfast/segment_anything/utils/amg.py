"""As `segment_anything.utils.amg`: the original's functions, on `samfast.masks`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast import coco_rle
from samfast.automatic_masks import image_crops, point_grids
from samfast.errors import InputError
from samfast.masks import boxes, regions, rle, stability
from samfast.masks.boxes import near_crop_edge
from samfast.segment_anything.mask_data import MaskData

__all__ = [
    "MaskData",
    "area_from_rle",
    "batch_iterator",
    "batched_mask_to_box",
    "box_xyxy_to_xywh",
    "build_all_layer_point_grids",
    "build_point_grid",
    "calculate_stability_score",
    "coco_encode_rle",
    "generate_crop_boxes",
    "is_box_near_crop_edge",
    "mask_to_rle_pytorch",
    "remove_small_regions",
    "rle_to_mask",
    "uncrop_boxes_xyxy",
    "uncrop_masks",
    "uncrop_points",
]

batched_mask_to_box = boxes.from_masks
build_all_layer_point_grids = point_grids.grids
build_point_grid = point_grids.grid
coco_encode_rle = coco_rle.encode
rle_to_mask = coco_rle.decode


def is_box_near_crop_edge(
    boxes: Tensor, crop_box: Sequence[int], orig_box: Sequence[int], atol: float = 20.0
) -> Tensor:
    """(N,) bool: boxes (N, 4), XYXY in a crop, within atol of a crop edge inside the image."""
    return near_crop_edge(boxes.float(), crop_box, orig_box, atol)


def box_xyxy_to_xywh(box_xyxy: Any) -> Any:
    """One box XYXY -> XYWH, of the same type: a tensor, array or list."""
    out = box_xyxy.clone() if isinstance(box_xyxy, Tensor) else box_xyxy.copy()
    out[2] = out[2] - out[0]
    out[3] = out[3] - out[1]
    return out


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Slices of `batch_size` rows of all arguments together; the last one may be shorter."""
    if len({len(arg) for arg in args}) != 1:
        raise InputError("batch_iterator needs arguments, all of one length")
    for start in range(0, len(args[0]), batch_size):
        yield [arg[start : start + batch_size] for arg in args]


def area_from_rle(rle: dict[str, Any]) -> int:
    """The number of pixels of an uncompressed RLE."""
    return int(sum(rle["counts"][1::2]))


def mask_to_rle_pytorch(tensor: Tensor) -> list[dict[str, Any]]:
    """(N, H, W) bool -> N uncompressed RLEs."""
    height, width = tensor.shape[-2:]
    return [rle.uncompressed(runs, height, width) for runs in rle.encode(tensor)]


def calculate_stability_score(
    masks: Tensor, mask_threshold: float, threshold_offset: float
) -> Tensor:
    """(..., H, W) logits -> (...) IoU of the masks at the threshold plus and minus the offset."""
    return stability.score(masks, mask_threshold, threshold_offset)


def generate_crop_boxes(
    im_size: tuple[int, ...], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """XYXY boxes of the image (H, W) and its crops, and the layer of each."""
    crops = image_crops.crop_boxes((im_size[0], im_size[1]), n_layers, overlap_ratio)
    return [list(box) for box, _ in crops], [layer for _, layer in crops]


def uncrop_boxes_xyxy(boxes: Tensor, crop_box: Sequence[int]) -> Tensor:
    """(..., 4) boxes in pixels of a crop -> in pixels of the image."""
    x0, y0 = crop_box[:2]
    return boxes + torch.tensor([x0, y0, x0, y0], device=boxes.device)


def uncrop_points(points: Tensor, crop_box: Sequence[int]) -> Tensor:
    """(..., 2) points in pixels of a crop -> in pixels of the image."""
    return points + torch.tensor(list(crop_box[:2]), device=points.device)


def uncrop_masks(masks: Tensor, crop_box: Sequence[int], orig_h: int, orig_w: int) -> Tensor:
    """(N, h, w) masks of a crop -> (N, H, W) of the image, zero outside the crop."""
    x0, y0, x1, y1 = crop_box
    return image_crops.uncrop(masks, (x0, y0, x1, y1), (orig_h, orig_w))


def remove_small_regions(
    mask: NDArray[np.bool_], area_thresh: float, mode: str
) -> tuple[NDArray[np.bool_], bool]:
    """The mask (H, W) without small "holes" or "islands", and whether that changed it."""
    return regions.remove_small(mask, area_thresh, mode)
