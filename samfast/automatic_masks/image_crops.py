"""Overlapping crops of an image, in layers of 4, 16, ..., each with its grid of points."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Generic

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samfast.automatic_masks import memory_plan
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.point_model import Features, Inputs, PointModel
from samfast.errors import ImageError
from samfast.images import input_size
from samfast.masks.boxes import Box
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.types import Size


@dataclass(frozen=True, eq=False)
class Crop:
    """A crop of an image, and its grid of points.

    image         the image's number in the stream; numbers ascend
    index, count  of the crop among the image's
    box           XYXY in pixels of the image
    image_size    (height, width) of the image
    geometry      the crop's place in the model's input
    threshold     of the masks' logits
    points        (n, 2) float64 XY in pixels of the crop
    model_points  (n, 1, 2) float64 XY in pixels of the model's input
    """

    image: int
    index: int
    count: int
    box: Box
    image_size: Size
    geometry: ResizeGeometry
    threshold: float
    points: NDArray[np.float64]
    model_points: Tensor


@dataclass(frozen=True, eq=False)
class CropGroup(Generic[Inputs]):
    """Crops that are encoded together, in the order of images and their crops.

    failure  an error about an image, raised once all images before that number are done
    """

    crops: list[Crop]
    inputs: Inputs
    failure: tuple[int, Exception] | None = None


def cut_image(
    image: int, size: Size, options: AutomaticOptions, model: PointModel[Inputs, Features]
) -> list[Crop]:
    """The crops of an image (height, width), the whole image first, with their points.

    Raises InputError if options.max_memory does not suffice for one mask, ImageError if a crop
    would have no pixels, and the errors of `samfast.images.input_size`.
    """
    grids = options.grids()
    boxes = crop_boxes(size, options.crop_n_layers, options.crop_overlap_ratio)
    crops = []
    for index, (box, layer) in enumerate(boxes):
        x0, y0, x1, y1 = box
        width, height = x1 - x0, y1 - y0
        if min(width, height) < 1:
            raise ImageError(
                f"image {image}, {size[0]} x {size[1]} pixels (H x W): too few for "
                f"crop_n_layers={options.crop_n_layers}; take fewer layers"
            )
        inside = input_size((height, width), model.side)
        geometry = ResizeGeometry(inside, (height, width), model.side)
        if options.max_memory is not None:
            stated = options.max_memory
            memory_plan.plan_memory(stated, stated, geometry, size, model)
        points = grids[layer] * np.array([width, height])
        scale = np.array([inside[1] / width, inside[0] / height])
        model_points = torch.from_numpy(points * scale)[:, None]
        crops.append(
            Crop(
                image=image,
                index=index,
                count=len(boxes),
                box=box,
                image_size=size,
                geometry=geometry,
                threshold=model.mask_threshold,
                points=points,
                model_points=model_points,
            )
        )
    return crops


def crop_boxes(size: Size, layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """The whole image and its crops, XYXY, each with its layer; the image's is 0 (original:
    `generate_crop_boxes`).

    size           (height, width) of the image in pixels
    overlap_ratio  overlap of neighbouring crops of the first layer, as a share of the short side;
                   each further layer has half the overlap
    """
    height, width = size
    crops = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / per_side))
        crop_w = _length(width, per_side, overlap)
        crop_h = _length(height, per_side, overlap)
        for column, row in product(range(per_side), range(per_side)):
            x0, y0 = column * (crop_w - overlap), row * (crop_h - overlap)
            crops.append(((x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)), layer))
    return crops


def _length(whole: int, count: int, overlap: int) -> int:
    """Side of `count` equal, overlapping crops that together cover the whole, rounded up."""
    return -(-(overlap * (count - 1) + whole) // count)


def uncrop(masks: Tensor, crop: Box, size: Size) -> Tensor:
    """Masks of a crop (N, h, w) -> of the image (N, H, W), false outside the crop."""
    height, width = size
    x0, y0, x1, y1 = crop
    if (x0, y0, x1, y1) == (0, 0, width, height):
        return masks
    return F.pad(masks, (x0, width - x1, y0, height - y1))
