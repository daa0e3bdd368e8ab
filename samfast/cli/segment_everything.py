"""Automatic masks of many files: one stream through the engine, in which a bad file stops none."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any

from samfast.cli.image_files import ImageFile
from samfast.cli.image_reader import ImageReader, ReadFile
from samfast.errors import DeviceMemoryError, SamfastError

if TYPE_CHECKING:
    from samfast.engine import SamFast
    from samfast.images import LoadedImage

Records = list[dict[str, Any]]

Answer = Records | Exception
"""The records of an image, or the error that it failed with."""


def segment_everything(
    sam: SamFast, files: Sequence[ImageFile], options: dict[str, Any], reader: ImageReader
) -> Iterator[tuple[ReadFile, Answer]]:
    """The records of each file, in order, or the error that it failed with.

    options  of `SamFast.segment_each`
    """
    import torch

    remaining = reader.each(files, beside_gpu=sam.device.type == "cuda")
    # Files read for the engine and not yet answered. The engine reads ahead, on a thread.
    pending: deque[ReadFile] = deque()

    def images(again: Sequence[ReadFile]) -> Iterator[LoadedImage]:
        for each in chain(again, remaining):
            pending.append(each)
            if each.image is not None:
                yield each.image

    failure: Exception | None
    while True:
        again = tuple(pending)
        pending.clear()
        failure = None
        try:
            with closing(sam.segment_each(images(again), **options)) as answers:
                for records in answers:
                    yield from _pop_unreadable(pending)
                    yield pending.popleft(), records
        except (SamfastError, torch.OutOfMemoryError) as error:
            failure = error
        yield from _pop_unreadable(pending)
        if failure is None:
            return
        if not pending:
            raise failure  # not about an image
        failed = pending.popleft()
        out_of_memory = isinstance(failure, DeviceMemoryError | torch.OutOfMemoryError)
        if out_of_memory and failed.image is not None:
            yield failed, _segment_alone(sam, failed.image, options)
        else:
            yield failed, failure


def _pop_unreadable(pending: deque[ReadFile]) -> Iterator[tuple[ReadFile, Exception]]:
    """Remove the files without an image from the front."""
    while pending and (error := pending[0].error) is not None:
        yield pending.popleft(), error


def _segment_alone(sam: SamFast, image: LoadedImage, options: dict[str, Any]) -> Answer:
    """Try again without other images in the device's memory."""
    import torch

    try:
        return sam.segment([image], **options)[0]
    except (SamfastError, torch.OutOfMemoryError) as error:
        return error
