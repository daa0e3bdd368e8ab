"""Images -> the encoder's input, or the bytes of which a device makes that."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.errors import ImageError
from samfast.images.load import LoadedImage
from samfast.images.resampling import as_pillow
from samfast.images.resize import input_size, resize_image
from samfast.types import PIXEL_MEAN, PIXEL_STD, ImageBatch, RawImageBatch, Size

T = TypeVar("T")

R = TypeVar("R")

Work = Callable[[int, Size, LoadedImage], R]
"""Does something with the image of that place in its batch, which will be of that size (h, w)."""

MOST, LONGEST = 16 << 20, 32768
"""Pixels of an image, and of its long side, that is sent to a device as it is; larger ones are
resized before."""


def to_batch(images: Sequence[LoadedImage], side: int, *, pin: bool = False) -> ImageBatch:
    """Resize, normalise, and pad with zeros at right and bottom: B images -> (B, 3, side, side)
    float32.

    Bit for bit what the original's `ResizeLongestSide` and `Sam.preprocess` give, on the CPU;
    several images are worked on at once. Raises ImageError, with the image's name, if one is too
    long and thin, or if there are none.

    pin  write the pixels into pinned memory, from which they are copied to a GPU without waiting
         for it
    """
    with Batcher(side, pin=pin) as batcher:
        return batcher.floats(images, already_loaded)


def to_bytes(images: Sequence[LoadedImage], side: int, *, pin: bool = False) -> RawImageBatch:
    """The images' own bytes, of which `samfast.images.device_preprocess` makes the pixels of
    to_batch on a device, bit for bit.

    Resized already, by Pillow, if they are very large, or Pillow's arithmetic is not known here.
    Raises and pins as to_batch.
    """
    with Batcher(side, pin=pin) as batcher:
        return batcher.bytes(images, already_loaded)


def already_loaded(image: LoadedImage, number: int) -> LoadedImage:
    """The `load` of a Batcher that is given loaded images."""
    return image


class Batcher:
    """Makes one batch after another, the images of each on several threads, which are the same for
    all batches.

    Close it, or use it in a `with`. `floats` and `bytes` may be called on any one thread at a time;
    each raises ImageError for the first image that cannot be used, or if there are none.

    side  the model's input side in pixels
    pin   write into pinned memory. torch keeps its blocks and gives one out again once the copies
          from it are done
    """

    def __init__(self, side: int, *, pin: bool = False) -> None:
        self._side, self._pin = side, pin
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="samfast-image")

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def floats(
        self, sources: Sequence[T], load: Callable[[T, int], LoadedImage], first: int = 0
    ) -> ImageBatch:
        """As to_batch, of images that `load` makes of a source and its number, counted from
        `first`.
        """
        side = self._side
        pixels = torch.zeros(len(sources), 3, side, side, device="cpu", pin_memory=self._pin)
        squares = list(pixels.numpy())  # views: each image is written into the batch where it stays

        def put(place: int, size: Size, image: LoadedImage) -> tuple[Size, Size]:
            _normalise_into(
                squares[place][:, : size[0], : size[1]], resize_image(image.pixels, side)
            )
            return image.size, size

        original, new = zip(*self._each(sources, load, first, put), strict=True)
        return ImageBatch(pixels, original, new)

    def bytes(
        self, sources: Sequence[T], load: Callable[[T, int], LoadedImage], first: int = 0
    ) -> RawImageBatch:
        """As to_bytes, of images that `load` makes of a source and its number, counted from
        `first`.
        """
        side = self._side

        def take(
            place: int, size: Size, image: LoadedImage
        ) -> tuple[NDArray[np.uint8], Size, Size]:
            height, width = image.size
            as_it_is = height * width <= MOST and max(height, width) <= LONGEST and as_pillow()
            return image.pixels if as_it_is else resize_image(image.pixels, side), image.size, size

        images, original, new = zip(*self._each(sources, load, first, take), strict=True)
        offsets = (0, *accumulate(own.size for own in images))
        pixels = torch.empty(offsets[-1], dtype=torch.uint8, device="cpu", pin_memory=self._pin)
        flat = pixels.numpy()

        def put(place: int) -> None:
            own = images[place]
            flat[offsets[place] : offsets[place + 1]].reshape(own.shape)[:] = own

        self._all(put, len(sources))
        sizes = tuple((own.shape[0], own.shape[1]) for own in images)
        return RawImageBatch(pixels, offsets, sizes, side, original, new)

    def _each(
        self, sources: Sequence[T], load: Callable[[T, int], LoadedImage], first: int, work: Work[R]
    ) -> list[R]:
        """Load them all, and do some work with each."""
        if not sources:
            raise ImageError("no images; pass at least one")

        def both(place: int) -> R:
            image = load(sources[place], first + place)
            return work(place, input_size(image.size, self._side, image.name), image)

        return self._all(both, len(sources))

    def _all(self, work: Callable[[int], R], count: int) -> list[R]:
        """Pillow and numpy release the GIL. One image alone is not worth a thread's start."""
        return list(map(work, (0,)) if count == 1 else self._pool.map(work, range(count)))


def _normalise_into(out: NDArray[np.float32], pixels: NDArray[np.uint8]) -> None:
    """(h, w, 3) uint8 -> `out`, (3, h, w) float32."""
    mean = np.array(PIXEL_MEAN, np.float32).reshape(3, 1, 1)
    std = np.array(PIXEL_STD, np.float32).reshape(3, 1, 1)
    # The original's two steps, in its order: a product with 1 / std would round differently.
    np.subtract(pixels.transpose(2, 0, 1), mean, out=out)
    np.divide(out, std, out=out)
