"""Resize an image so that its long side is the model's input side (original: ResizeLongestSide)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samfast.errors import ImageError
from samfast.types import Size


def input_size(original_size: Size, side: int, name: str = "image") -> Size:
    """(h, w) of the image once its long side is `side` pixels (original: `get_preprocess_shape`).

    Raises ImageError if the short side would round to 0: beyond 2048 : 1 for a side of 1024.
    """
    height, width = original_size
    start = f"{name}: {height} x {width} (H x W)"
    if min(height, width) < 1:
        raise ImageError(f"{start} has no pixels; check the crop it came from")
    # In the original's order of operations: another order rounds some halves differently.
    scale = side * 1.0 / max(height, width)
    h, w = int(height * scale + 0.5), int(width * scale + 0.5)
    if min(h, w) < 1:
        raise ImageError(
            f"{start} is too long and thin, at an input of {side} its short side would vanish; "
            "cut it into shorter pieces"
        )
    return h, w


def resize_image(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 -> (h, w, 3) uint8, (h, w) = input_size((H, W), side).

    Pillow's antialiased bilinear filter, bit for bit the original's. An image that already has that
    size is returned uncopied. Raises ImageError as input_size does.
    """
    size = input_size((pixels.shape[0], pixels.shape[1]), side)
    if size == pixels.shape[:2]:
        return pixels
    return np.array(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
