"""Retrying work in smaller chunks when the GPU runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from samfast.errors import DeviceMemoryError

_LOG = logging.getLogger("samfast")

T = TypeVar("T")

REMEDY = (
    "lower max_memory, points_per_batch or batch_size, whichever is set, or close what else "
    "uses the GPU"
)
"""What the user can do where masks are generated."""

FEWER_IMAGES = "lower batch_size, or close what else uses the GPU"
FEWER_OBJECTS = "ask for fewer objects or images at a time, or close what else uses the GPU"
"""What the user can do where images are embedded, and where prompts are decoded."""


class RetryOnOOM:
    """Runs work in chunks, and halves their size when the GPU first runs out of memory.

    Running out of memory again raises DeviceMemoryError. The object remembers that it has halved:
    share one between all the work for an image.

    remedy  what the user can do, for messages
    """

    def __init__(self, remedy: str = REMEDY) -> None:
        self._halved = False
        self._remedy = remedy

    def map_chunks(self, count: int, chunk_size: int, work: Callable[[int, int], T]) -> Iterator[T]:
        """The results of work(start, stop) for chunks of 0 to count, at most `chunk_size` long.

        A chunk that runs out of memory is repeated in halves, so `work` must be repeatable.
        """
        start = 0
        while start < count:
            size = -(-chunk_size // 2) if self._halved else chunk_size
            stop = min(count, start + size)
            try:
                result = work(start, stop)
            except torch.OutOfMemoryError as error:
                self._halve(stop - start, error)
                chunk_size = stop - start  # the last chunk may be shorter than chunk_size
            else:
                yield result
                start = stop
                continue
            # Outside the except block the traceback is gone, and with it the tensors it kept alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def run_chunks(
        self, first: int, last: int, chunk_size: int, work: Callable[[int, int], object]
    ) -> None:
        """As `map_chunks`, for chunks of first to last, discarding results."""
        for _ in self.map_chunks(
            last - first, chunk_size, lambda start, stop: work(first + start, first + stop)
        ):
            pass

    def run(self, work: Callable[[], T]) -> T:
        """The result of work that cannot be split; DeviceMemoryError if it runs out of memory."""
        try:
            return work()
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(f"the GPU ran out of memory: {self._remedy}") from error

    def _halve(self, size: int, error: torch.OutOfMemoryError) -> None:
        if self._halved or size == 1:
            tried = "with chunks of half the size too" if self._halved else "with one at a time"
            raise DeviceMemoryError(
                f"the GPU ran out of memory, {tried}: {self._remedy}"
            ) from error
        self._halved = True
        _LOG.warning(
            "the GPU ran out of memory with %d at a time; going on with half as many. %s",
            size,
            self._remedy,
        )


class NoRetry(RetryOnOOM):
    """Runs work in chunks and lets torch.OutOfMemoryError through: the caller retries."""

    def run(self, work: Callable[[], T]) -> T:
        return work()

    def _halve(self, size: int, error: torch.OutOfMemoryError) -> None:
        raise error
