"""A list of images, loaded on threads and batched, the next batch while one is encoded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samfast.device.ordered_jobs import in_order
from samfast.device.prefetch import prefetch
from samfast.device.transfer import works_beside_host
from samfast.errors import ImageWarning, InputError, SamfastError
from samfast.images.batching import Batcher
from samfast.images.device_preprocess import batch_maker
from samfast.images.load import ImageLike, LoadedImage, load_image
from samfast.types import ImageBatch, RawImageBatch

Batch = ImageBatch | RawImageBatch

LOADERS = 8
"""Threads that load images beside a GPU, where cores allow. Decoding releases the GIL."""

Load = Callable[[ImageLike | LoadedImage, int], LoadedImage]
"""Loads an image; its number among all images is for messages."""


@contextmanager
def loaded_batches(
    images: Sequence[ImageLike | LoadedImage], side: int, batch_size: int, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """The images in batches, as their way to the device takes them; its threads end with the block.

    Raises InputError for anything but a list of images, and ImageError, with the image's name,
    before the batch of an image that cannot be used.
    """
    check_list(images, Sequence)
    if not images:
        raise InputError("an empty list of images; give at least one")
    batches = _batches(images, thread_loader(), side, batch_size, device)
    ready = prefetch(batches) if len(images) > batch_size else batches
    with closing(batches), closing(ready):
        yield ready


def check_list(images: object, kinds: Any) -> None:
    """InputError unless the images are of those kinds of collections, and not a single path."""
    if isinstance(images, str | os.PathLike) or not isinstance(images, kinds):
        raise InputError(f"{type(images).__name__} instead of a list of images; wrap it: [image]")


def load_numbered(image: ImageLike | LoadedImage, number: int) -> LoadedImage:
    """Load an image, if it is not loaded; without a path, messages call it "image 3".

    The notes of an image that is loaded here become one ImageWarning.
    """
    if isinstance(image, LoadedImage):
        return image
    loaded = load_image(image, None if isinstance(image, str | os.PathLike) else f"image {number}")
    if loaded.notes:
        warnings.warn(f"{loaded.name}: {'; '.join(loaded.notes)}", ImageWarning, stacklevel=2)
    return loaded


def _batches(
    images: Sequence[ImageLike | LoadedImage],
    load: Load,
    side: int,
    batch_size: int,
    device: torch.device,
) -> Generator[Batch, None, None]:
    with Batcher(side, pin=device.type == "cuda") as batcher:
        make = batch_maker(batcher, device)
        for start in range(0, len(images), batch_size):
            yield make(images[start : start + batch_size], load, start)


@contextmanager
def each_loaded(
    images: Sequence[ImageLike | LoadedImage] | Iterator[ImageLike | LoadedImage],
    device: torch.device,
) -> Iterator[Iterator[ImageLike | LoadedImage | SamfastError]]:
    """Yields an iterator: each image of a list loaded, or the error for which it cannot be used, in
    order. Beside a GPU several threads load, a few ahead, which end with the block.

    A single image is loaded by whoever takes it: to start a thread takes as long as to load some.
    An iterator is yielded as it is: its next item may wait for results of those before.
    """
    if isinstance(images, Iterator):
        yield images
        return
    load = thread_loader()

    def work(number: int, image: ImageLike | LoadedImage) -> LoadedImage | SamfastError:
        try:
            return load(image, number)
        except SamfastError as error:
            return error

    threads = works_beside_host(device) and len(images) > 1
    workers = min(LOADERS, os.cpu_count() or 1) if threads else 0
    jobs = (partial(work, number, image) for number, image in enumerate(images))
    each = in_order(jobs, workers, ahead=workers, name="samfast-image")
    try:
        yield each
    finally:
        with suppress(ValueError):  # a thread waits for its next image, and ends when it comes
            each.close()


def load_or_raise(image: ImageLike | LoadedImage | SamfastError, number: int) -> LoadedImage:
    """`load_numbered`, for items of `each_loaded` too, whose errors are raised."""
    if isinstance(image, SamfastError):
        raise image
    return load_numbered(image, number)


def thread_loader() -> Load:
    """`load_numbered` for other threads: a tensor on a GPU is read after the work that is queued on
    this thread's stream.
    """
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = torch.cuda.device_count() if started else 0
    streams = [torch.cuda.current_stream(i) for i in range(devices)]

    def load(image: ImageLike | LoadedImage, number: int) -> LoadedImage:
        if isinstance(image, Tensor) and image.is_cuda:
            with torch.cuda.stream(streams[image.device.index]):
                return load_numbered(image, number)
        return load_numbered(image, number)

    return load
