"""Images -> the encoder's input batch, or the raw pixels from which a device makes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.errors import ImageError, SamfastError
from samfast.images.load import LoadedImage
from samfast.images.resampling import as_pillow
from samfast.images.resize import input_size, resize_image
from samfast.types import PIXEL_MEAN, PIXEL_STD, ImageBatch, RawImageBatch, Size

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 16
"""Threads that prepare images; more of them wait for one another, and for Python's lock."""

MAX_RAW_PIXELS = 16 << 20
"""Pixels of an image in a raw batch; a larger one is resized on the host first."""

MAX_COPIED_BYTES = 32 << 20
"""Bytes of a raw batch that one thread copies, in a few milliseconds without Python's lock; more
are copied on several."""

MAX_RAW_SIDE = 32768
"""Long side in pixels of an image in a raw batch; a longer one is resized on the host first."""


def to_batch(images: Sequence[LoadedImage], side: int) -> ImageBatch:
    """Resize, normalise, and pad with zeros at right and bottom: B images -> (B, 3, side, side).

    The float32 pixels are bit for bit those of the original's `ResizeLongestSide` and
    `Sam.preprocess` on a CPU. Raises ImageError, with the image's name, if one is too long and
    thin, or if the list is empty.
    """
    with Batcher(side) as batcher:
        return batcher.batch(images, already_loaded)


def already_loaded(image: LoadedImage | SamfastError, number: int) -> LoadedImage:
    """The `load` of a Batcher that is given loaded images, or why one cannot be used. It takes no
    time, and no threads are given it: waking them would take Python's lock from those that work.
    """
    if isinstance(image, SamfastError):
        raise image
    return image


class Batcher:
    """Makes one batch after another; the images of each are prepared on several threads.

    Use it in a `with`, which ends the threads. `batch` and `raw_batch` may be called from one
    thread at a time. `load` makes a LoadedImage of a source and its number, counted from `first`.
    Both raise ImageError for the first image that cannot be used, or if there are none.

    side  the model's input side in pixels
    pin   write into pinned memory, from which a copy to the GPU does not wait; torch reuses such a
          block only when the copies from it are done
    """

    def __init__(self, side: int, *, pin: bool = False) -> None:
        self._side, self._pin = side, pin
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def batch(
        self, sources: Sequence[T], load: Callable[[T, int], LoadedImage], first: int = 0
    ) -> ImageBatch:
        """Resized, normalised and padded, as `to_batch`."""
        side = self._side
        pixels = torch.zeros(len(sources), 3, side, side, device="cpu", pin_memory=self._pin)
        squares = pixels.numpy()  # the same memory: each image is written where it stays

        def fill(index: int, image: LoadedImage, size: Size) -> tuple[Size, Size]:
            resized = resize_image(image.pixels, side)
            _normalise_into(squares[index, :, : size[0], : size[1]], resized)
            return image.size, size

        original, new = zip(*self._load_each(sources, load, first, fill), strict=True)
        return ImageBatch(pixels, original, new)

    def raw_batch(
        self, sources: Sequence[T], load: Callable[[T, int], LoadedImage], first: int = 0
    ) -> RawImageBatch:
        """Unresized pixels; `samfast.images.device_preprocess` makes those of `batch` from them.

        Very large images are resized here, and all are if the installed Pillow's arithmetic is
        unknown.
        """
        side = self._side

        def take(
            index: int, image: LoadedImage, size: Size
        ) -> tuple[NDArray[np.uint8], Size, Size]:
            pixels = image.pixels if _stays_raw(image) else resize_image(image.pixels, side)
            return pixels, image.size, size

        quick = load is already_loaded and all(
            isinstance(each, LoadedImage) and _stays_raw(each) for each in sources
        )
        loaded = self._load_each(sources, load, first, take, quick=quick)
        images, original, new = zip(*loaded, strict=True)
        offsets = (0, *accumulate(image.size for image in images))
        pixels = torch.empty(offsets[-1], dtype=torch.uint8, device="cpu", pin_memory=self._pin)
        flat = pixels.numpy()

        def copy(index: int) -> None:
            image = images[index]
            flat[offsets[index] : offsets[index + 1]].reshape(image.shape)[:] = image

        self._map(copy, len(images), quick=len(flat) <= MAX_COPIED_BYTES)
        sizes = tuple((image.shape[0], image.shape[1]) for image in images)
        return RawImageBatch(pixels, offsets, sizes, side, original, new)

    def load(
        self, sources: Sequence[T], load: Callable[[T, int], LoadedImage], first: int = 0
    ) -> list[LoadedImage | SamfastError]:
        """Each source loaded, or the error for which it cannot be used; numbers as in `batch`."""

        def work(index: int) -> LoadedImage | SamfastError:
            try:
                image = load(sources[index], first + index)
                input_size(image.size, self._side, image.name)
            except SamfastError as error:
                return error
            return image

        return self._map(work, len(sources), quick=load is already_loaded)

    def _load_each(
        self,
        sources: Sequence[T],
        load: Callable[[T, int], LoadedImage],
        first: int,
        finish: Callable[[int, LoadedImage, Size], R],
        *,
        quick: bool = False,
    ) -> list[R]:
        """Load each source and call `finish` with its index, image and input size."""
        if not sources:
            raise ImageError("no images; pass at least one")

        def work(index: int) -> R:
            image = load(sources[index], first + index)
            return finish(index, image, input_size(image.size, self._side, image.name))

        return self._map(work, len(sources), quick=quick)

    def _map(self, work: Callable[[int], R], count: int, *, quick: bool) -> list[R]:
        """On the threads, where Pillow and numpy release the GIL, unless the work is `quick` or for
        a single image.
        """
        run = map if quick or count == 1 else self._pool().map
        return list(run(work, range(count)))

    def _pool(self) -> ThreadPoolExecutor:
        """The threads, which a single image needs none of."""
        if self._threads is None:
            threads = min(os.cpu_count() or 1, MAX_THREADS)
            self._threads = ThreadPoolExecutor(threads, thread_name_prefix="samfast-image")
        return self._threads


def _stays_raw(image: LoadedImage) -> bool:
    """Whether an image is resized by the device."""
    height, width = image.size
    small = height * width <= MAX_RAW_PIXELS and max(height, width) <= MAX_RAW_SIDE
    return small and as_pillow()


def _normalise_into(out: NDArray[np.float32], pixels: NDArray[np.uint8]) -> None:
    """(h, w, 3) uint8 -> `out`, (3, h, w) float32."""
    mean = np.array(PIXEL_MEAN, np.float32).reshape(3, 1, 1)
    std = np.array(PIXEL_STD, np.float32).reshape(3, 1, 1)
    # The original's two steps: a product with 1 / std would round differently.
    np.subtract(pixels.transpose(2, 0, 1), mean, out=out)
    np.divide(out, std, out=out)
