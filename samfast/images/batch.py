"""Loaded images -> the encoder's input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.errors import ImageError
from samfast.images.load import LoadedImage
from samfast.images.resize import input_size, resize_image
from samfast.types import PIXEL_MEAN, PIXEL_STD, ImageBatch, Size


def to_batch(images: Sequence[LoadedImage], side: int, *, pin: bool = False) -> ImageBatch:
    """Resize, normalise, and pad with zeros at right and bottom: B images -> (B, 3, side, side) float32.

    Bit for bit what the original's `ResizeLongestSide` and `Sam.preprocess` give, on the CPU; several images
    are worked on at once. Raises ImageError, with the image's name, if one is too long and thin, or if there
    are none.

    pin  write the pixels into pinned memory, from which they are copied to a GPU without waiting for it
    """
    if not images:
        raise ImageError("no images; pass at least one")
    sizes = tuple(input_size(image.size, side, image.name) for image in images)
    pixels = torch.zeros(len(images), 3, side, side, pin_memory=pin)
    squares = list(pixels.numpy())  # views: each image is written into the batch where it stays

    def fill(square: NDArray[np.float32], image: LoadedImage, size: Size) -> None:
        _normalise_into(square[:, : size[0], : size[1]], resize_image(image.pixels, side))

    if len(images) == 1:
        fill(squares[0], images[0], sizes[0])
    else:  # Pillow and numpy release the GIL
        with ThreadPoolExecutor(min(len(images), os.cpu_count() or 1)) as pool:
            list(pool.map(fill, squares, images, sizes))
    return ImageBatch(pixels, tuple(image.size for image in images), sizes)


def _normalise_into(out: NDArray[np.float32], pixels: NDArray[np.uint8]) -> None:
    """(h, w, 3) uint8 -> `out`, (3, h, w) float32."""
    mean = np.array(PIXEL_MEAN, np.float32).reshape(3, 1, 1)
    std = np.array(PIXEL_STD, np.float32).reshape(3, 1, 1)
    # The original's two steps, in its order: a product with 1 / std would round differently.
    np.subtract(pixels.transpose(2, 0, 1), mean, out=out)
    np.divide(out, std, out=out)
