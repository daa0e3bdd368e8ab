"""Everything in each of many files: one stream through the engine, in which a file that fails
spares the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from samfast.cli.inputs import Job
from samfast.errors import DeviceMemoryError, SamfastError

if TYPE_CHECKING:
    from samfast.engine import SamFast
    from samfast.images import LoadedImage

Records = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Read:
    """A file that has been read: the image, or why there is none."""

    job: Job
    image: LoadedImage | None
    error: Exception | None


def read(job: Job) -> Read:
    """Read a job's file."""
    from samfast.images import load_image

    try:
        return Read(job, load_image(job.source), None)
    except SamfastError as error:
        return Read(job, None, error)


def find(
    sam: SamFast, jobs: Sequence[Job], options: dict[str, Any]
) -> Iterator[tuple[Read, Records | Exception]]:
    """Of each file, in order, what was found, or the error that it failed with."""
    import torch

    rest = iter(jobs)
    taken: deque[Read] = deque()  # by the engine, which asks for some ahead, on a thread of its own

    def images(again: Sequence[Read]) -> Iterator[LoadedImage]:
        for each in chain(again, map(read, rest)):
            taken.append(each)
            if each.image is not None:
                yield each.image

    failure: Exception | None
    while True:
        again = tuple(taken)
        taken.clear()
        failure = None
        try:
            with closing(sam.segment_each(images(again), **options)) as found:
                for records in found:
                    yield from _unreadable(taken)
                    yield taken.popleft(), records
        except (SamfastError, torch.OutOfMemoryError) as error:
            failure = error
        yield from _unreadable(taken)
        if failure is None:
            return
        if not taken:
            raise failure  # about no image
        failed = taken.popleft()
        if (
            isinstance(failure, DeviceMemoryError | torch.OutOfMemoryError)
            and failed.image is not None
        ):
            yield failed, _alone(sam, failed.image, options)
        else:
            yield failed, failure


def _unreadable(taken: deque[Read]) -> Iterator[tuple[Read, Exception]]:
    """Take those files out that come before the next image."""
    while taken and (error := taken[0].error) is not None:
        yield taken.popleft(), error


def _alone(sam: SamFast, image: LoadedImage, options: dict[str, Any]) -> Records | Exception:
    """With the memory that its neighbours took, it may work."""
    import torch

    try:
        return sam.segment([image], **options)[0]
    except (SamfastError, torch.OutOfMemoryError) as error:
        return error
