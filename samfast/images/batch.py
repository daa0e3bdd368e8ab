"""Images -> the encoder's input, or the bytes of which a device makes that."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.errors import ImageError
from samfast.images.load import LoadedImage
from samfast.images.resize import input_size, resize_image, resize_into
from samfast.types import PIXEL_MEAN, PIXEL_STD, ByteBatch, ImageBatch, Size

T = TypeVar("T")

Put = Callable[[int, Size, LoadedImage], None]
"""Writes the image of that place, which will be of that size (h, w), into its batch."""


def to_batch(images: Sequence[LoadedImage], side: int, *, pin: bool = False) -> ImageBatch:
    """Resize, normalise, and pad with zeros at right and bottom: B images -> (B, 3, side, side) float32.

    Bit for bit what the original's `ResizeLongestSide` and `Sam.preprocess` give, on the CPU; several images
    are worked on at once. Raises ImageError, with the image's name, if one is too long and thin, or if there
    are none.

    pin  write the pixels into pinned memory, from which they are copied to a GPU without waiting for it
    """
    with Batcher(side, pin=pin) as batcher:
        return batcher.floats(images, already_loaded)


def to_bytes(images: Sequence[LoadedImage], side: int, *, pin: bool = False) -> ByteBatch:
    """Resize only: B images -> (B, side, side, 3) uint8, what no image covers being undefined.

    `samfast.recipes.pixels` makes of it, on a device, the pixels of to_batch, bit for bit. Raises and pins as that.
    """
    with Batcher(side, pin=pin) as batcher:
        return batcher.bytes(images, already_loaded)


def already_loaded(image: LoadedImage, number: int) -> LoadedImage:
    """The `load` of a Batcher that is given loaded images."""
    return image


class Batcher:
    """Makes one batch after another, the images of each on several threads, which are the same for all batches.

    Close it, or use it in a `with`. `floats` and `bytes` may be called on any one thread at a time; each raises
    ImageError for the first image that cannot be used, or if there are none.

    side  the model's input side in pixels
    pin   write into pinned memory. torch keeps its blocks and gives one out again once the copies from it are done
    """

    def __init__(self, side: int, *, pin: bool = False) -> None:
        self._side, self._pin = side, pin
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="samfast-image")

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def floats(
        self, sources: Sequence[T], load: Callable[[T, int], LoadedImage], first: int = 0
    ) -> ImageBatch:
        """As to_batch, of images that `load` makes of a source and its number, counted from `first`."""
        side = self._side
        pixels = torch.zeros(len(sources), 3, side, side, device="cpu", pin_memory=self._pin)
        squares = list(pixels.numpy())  # views: each image is written into the batch where it stays

        def put(place: int, size: Size, image: LoadedImage) -> None:
            _normalise_into(squares[place][:, : size[0], : size[1]], resize_image(image.pixels, side))

        return ImageBatch(pixels, *self._each(sources, load, first, put))

    def bytes(self, sources: Sequence[T], load: Callable[[T, int], LoadedImage], first: int = 0) -> ByteBatch:
        """As to_bytes, of images that `load` makes of a source and its number, counted from `first`."""
        side = self._side
        shape = (len(sources), side, side, 3)
        pixels = torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=self._pin)
        squares = list(pixels.numpy())

        def put(place: int, size: Size, image: LoadedImage) -> None:
            resize_into(squares[place][: size[0], : size[1]], image.pixels)

        return ByteBatch(pixels, *self._each(sources, load, first, put))

    def _each(
        self, sources: Sequence[T], load: Callable[[T, int], LoadedImage], first: int, put: Put
    ) -> tuple[tuple[Size, ...], tuple[Size, ...]]:
        """Load and put them all; the sizes before and after."""
        if not sources:
            raise ImageError("no images; pass at least one")

        def work(place: int) -> tuple[Size, Size]:
            image = load(sources[place], first + place)
            size = input_size(image.size, self._side, image.name)
            put(place, size, image)
            return image.size, size

        # Pillow and numpy release the GIL. One image alone is not worth a thread's start.
        made = list(map(work, (0,)) if len(sources) == 1 else self._pool.map(work, range(len(sources))))
        return tuple(original for original, _ in made), tuple(size for _, size in made)


def _normalise_into(out: NDArray[np.float32], pixels: NDArray[np.uint8]) -> None:
    """(h, w, 3) uint8 -> `out`, (3, h, w) float32."""
    mean = np.array(PIXEL_MEAN, np.float32).reshape(3, 1, 1)
    std = np.array(PIXEL_STD, np.float32).reshape(3, 1, 1)
    # The original's two steps, in its order: a product with 1 / std would round differently.
    np.subtract(pixels.transpose(2, 0, 1), mean, out=out)
    np.divide(out, std, out=out)
