"""Reading image files, the first of them while the model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from samfast.cli.console import printable
from samfast.cli.image_files import ImageFile
from samfast.device.ordered_jobs import in_order
from samfast.errors import SamfastError

if TYPE_CHECKING:
    from samfast.images import LoadedImage

MAX_EARLY = 4
"""Most files that are read while the model is loaded; each waits in memory."""

READERS = 8
"""Threads that read files beside a GPU, where cores allow. Decoding releases the GIL."""


@dataclass(frozen=True, eq=False)
class ReadFile:
    """A file that was read: its image, or the error that reading it raised."""

    file: ImageFile
    image: LoadedImage | None
    error: Exception | None


def read(file: ImageFile) -> ReadFile:
    """Read an image file."""
    from samfast.images import load_image

    try:
        return ReadFile(file, load_image(file.path, printable(str(file.path))), None)
    except SamfastError as error:
        return ReadFile(file, None, error)


class ImageReader:
    """Reads files; it begins with the first ones at once, on threads.

    files  in the order in which they will be needed
    """

    def __init__(self, files: Sequence[ImageFile]) -> None:
        count = min(MAX_EARLY, len(files), os.cpu_count() or 1)
        self._early: dict[ImageFile, Future[ReadFile]] = {}
        if count:
            # Here, as a process that ends while another thread imports torch may crash.
            import samfast.images  # noqa: F401

            pool = ThreadPoolExecutor(count, thread_name_prefix="samfast-read")
            self._early = {file: pool.submit(read, file) for file in files[:count]}
            pool.shutdown(wait=False)

    def __call__(self, file: ImageFile) -> ReadFile:
        """The file; callable from any thread, once for each file."""
        early = self._early.pop(file, None)
        return read(file) if early is None else early.result()

    def each(self, files: Iterable[ImageFile], *, beside_gpu: bool) -> Iterator[ReadFile]:
        """The files in order; beside a GPU several are read at a time, ahead."""
        workers = min(READERS, os.cpu_count() or 1) if beside_gpu else 0
        jobs = (partial(self, file) for file in files)
        return in_order(jobs, workers, ahead=workers, name="samfast-read")
