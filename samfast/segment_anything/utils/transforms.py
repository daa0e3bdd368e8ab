"""As `segment_anything.utils.transforms`: images, points and boxes to the model's input size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samfast.images import input_size, resize_image
from samfast.segment_anything.written_methods import WrittenMethods

__all__ = ["ResizeLongestSide"]


class ResizeLongestSide:
    """Resizes the long side to `target_length` pixels; methods for images, points and boxes."""

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 -> (h, w, 3) uint8, by Pillow's bilinear filter; always a new array.

        One channel, (H, W, 1) or (H, W), gives (h, w).
        """
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        resized = resize_image(image, self.target_length)
        return resized.copy() if resized is image else resized

    def apply_coords(
        self, coords: NDArray[Any], original_size: tuple[int, ...]
    ) -> NDArray[np.float64]:
        """Points (..., 2), XY in pixels of an image of (H, W) -> XY in input pixels."""
        xy: NDArray[np.float64] = np.asarray(coords, np.float64) * self._scale(original_size)
        return xy

    def apply_boxes(
        self, boxes: NDArray[Any], original_size: tuple[int, ...]
    ) -> NDArray[np.float64]:
        """Boxes (N, 4) XYXY, likewise."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, C, h, w), antialiased; not bit-equal to apply_image.

        The edition followed here is segment_anything 1.0 on PyPI, whose code reads the size from B
        and C; this reads H and W, as its docstring says.
        """
        size = self.get_preprocess_shape(image.shape[-2], image.shape[-1], self.target_length)
        return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """As apply_coords, for tensors; float32."""
        x, y = self._scale(original_size)
        coords = coords.to(torch.float32)
        return torch.stack([coords[..., 0] * x, coords[..., 1] * y], dim=-1)

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """As apply_boxes, for tensors; float32."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """(h, w) of an image with a long side of `long_side_length`; ImageError if one vanishes."""
        return input_size((oldh, oldw), long_side_length)

    def _scale(self, original_size: tuple[int, ...]) -> tuple[float, float]:
        """Factors of X and Y."""
        height, width = original_size
        new_h, new_w = self.get_preprocess_shape(height, width, self.target_length)
        return new_w / width, new_h / height


TRANSFORM_METHODS = WrittenMethods(ResizeLongestSide)
