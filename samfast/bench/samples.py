"""Images and prompts to measure with: the same in every process; fewer are the first of more."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.images import LoadedImage, input_size
from samfast.types import Prompts, Size

IMAGE_SIZE: Size = (480, 640)
OBJECTS = (7, 3, 12, 5, 9, 1, 14, 8, 6, 10, 4, 7, 20, 2, 5, 6)
"""Objects of image 0, 1, ...: ragged, 7.4 on average, as in COCO val2017."""


def objects(count: int) -> list[int]:
    """The number of objects of each of `count` images."""
    return [OBJECTS[i % len(OBJECTS)] for i in range(count)]


def images(count: int) -> list[LoadedImage]:
    """Images with structure at every scale."""
    generator = np.random.default_rng(0)
    made = []
    for i in range(count):
        coarse = torch.from_numpy(generator.random((1, 3, 15, 20), dtype=np.float32))
        smooth = torch.nn.functional.interpolate(coarse, IMAGE_SIZE, mode="bilinear")[0]
        noise = generator.random((*IMAGE_SIZE, 3), dtype=np.float32)
        pixels = 255 * (0.8 * smooth.permute(1, 2, 0).numpy() + 0.2 * noise)
        made.append(LoadedImage(pixels.astype(np.uint8), f"synthetic {i}"))
    return made


def prompts(count: int) -> list[Prompts]:
    """A click for each object, anywhere in its image."""
    generator = np.random.default_rng(1)
    size = np.array(IMAGE_SIZE[::-1])
    return [one_click_each(generator.random((n, 2)) * (size - 1)) for n in objects(count)]


def one_click_each(points: NDArray[np.float64]) -> Prompts:
    """Prompts for N objects: a click on each, (N, 2) XY."""
    return Prompts(points=points[:, None], labels=np.ones((len(points), 1), dtype=np.int64))


def clicks(
    count: int, side: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """The same on a device: points (N, 1, 2) in pixels of the model's input, labels (N, 1)."""
    height, width = input_size(IMAGE_SIZE, side)
    scale = np.array([width / IMAGE_SIZE[1], height / IMAGE_SIZE[0]])
    points = [
        torch.from_numpy(np.asarray(each.points) * scale).to(device, dtype)
        for each in prompts(count)
    ]
    labels = [torch.ones(each.shape[:2], dtype=torch.int32, device=device) for each in points]
    return points, labels
