"""What does not fit into the GPU's memory is tried once more, in halves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from samfast.errors import DeviceMemoryError

_LOG = logging.getLogger("samfast")

T = TypeVar("T")

LOWER = (
    "lower max_memory, points_per_batch or batch_size, whichever is set, or close what else "
    "uses the GPU"
)


class RetryOnOOM:
    """Work in chunks, which become half as large when the GPU first runs out of memory.

    The second time raises DeviceMemoryError. One object of this class is one memory of that: share
    it between all that an image needs.

    lower  what the user can do about it, for messages
    """

    def __init__(self, lower: str = LOWER) -> None:
        self.halved = False
        self._lower = lower

    def each(self, count: int, step: int, work: Callable[[int, int], T]) -> Iterator[T]:
        """The results of work(start, stop) over 0 to count, at most `step` at a time.

        Work must be repeatable: what runs out of memory is called again, with less.
        """
        start = 0
        while start < count:
            stop = min(count, start + self._step(step))
            try:
                result = work(start, stop)
            except torch.OutOfMemoryError as error:
                self._take_note(stop - start, error)
                step = stop - start  # there may not have been a whole step's left
            else:
                yield result
                start = stop
                continue
            # Out here the error is gone, and with it the tensors that its frames had held.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def over(self, first: int, last: int, step: int, work: Callable[[int, int], object]) -> None:
        """As `each`, from first to last, of work that puts its results somewhere itself."""
        for _ in self.each(
            last - first, step, lambda start, stop: work(first + start, first + stop)
        ):
            pass

    def whole(self, work: Callable[[], T]) -> T:
        """The result of work that cannot be done in parts."""
        try:
            return work()
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(f"the GPU ran out of memory: {self._lower}") from error

    def _step(self, step: int) -> int:
        return -(-step // 2) if self.halved else step

    def _take_note(self, size: int, error: torch.OutOfMemoryError) -> None:
        if self.halved or size == 1:
            tried = "with chunks of half the size too" if self.halved else "with one at a time"
            raise DeviceMemoryError(f"the GPU ran out of memory, {tried}: {self._lower}") from error
        self.halved = True
        _LOG.warning(
            "the GPU ran out of memory with %d at a time; going on with half as many. %s",
            size,
            self._lower,
        )


class NoRetry(RetryOnOOM):
    """The same where whoever called halves, and is to see the error."""

    def whole(self, work: Callable[[], T]) -> T:
        return work()

    def _take_note(self, size: int, error: torch.OutOfMemoryError) -> None:
        raise error
