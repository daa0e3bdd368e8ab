"""Automatic masks of a stream of images of which some are bad: a bad one stops no other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from samfast.errors import DeviceMemoryError, SamfastError

if TYPE_CHECKING:
    from samfast.images import LoadedImage

Records = list[dict[str, Any]]

Answer = Records | Exception
"""The records of an image, or the error that it failed with."""


class StreamedImage(Protocol):
    """An image that was read, or the error that reading it raised."""

    @property
    def image(self) -> LoadedImage | None: ...

    @property
    def error(self) -> Exception | None: ...


SegmentEach = Callable[[Any], Generator[list[dict[str, Any]], None, None]]
"""`SamFast.segment_each` with its options: of a list or an iterator of loaded images."""

T = TypeVar("T", bound=StreamedImage)


def segment_stream(segment_each: SegmentEach, images: Iterator[T]) -> Iterator[tuple[T, Answer]]:
    """The records of each image, in order, or the error that it failed with.

    images  iterated on a thread, some ahead of the answers; its own errors are raised after the
            answers of the images before
    """
    import torch

    # Images handed to the engine and not yet answered.
    pending: deque[T] = deque()

    def loaded(again: Sequence[T]) -> Iterator[LoadedImage]:
        for each in chain(again, images):
            pending.append(each)
            if each.image is not None:
                yield each.image

    failure: Exception | None
    while True:
        again = tuple(pending)
        pending.clear()
        failure = None
        try:
            with closing(segment_each(loaded(again))) as answers:
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
            yield failed, _segment_alone(segment_each, failed.image)
        else:
            yield failed, failure


def _pop_unreadable(pending: deque[T]) -> Iterator[tuple[T, Exception]]:
    """Remove the entries without an image from the front."""
    while pending and (error := pending[0].error) is not None:
        yield pending.popleft(), error


def _segment_alone(segment_each: SegmentEach, image: LoadedImage) -> Answer:
    """Try again without other images in the device's memory."""
    import torch

    try:
        return next(segment_each([image]))
    except (SamfastError, torch.OutOfMemoryError) as error:
        return error
