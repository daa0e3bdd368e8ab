"""What does not fit into the GPU's memory is tried once more, in halves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from samfast.errors import DeviceMemoryError

_LOG = logging.getLogger("samfast")

T = TypeVar("T")

LOWER = "lower max_memory, points_per_batch or batch_size, whichever is set, or close what else uses the GPU"


class Halving:
    """Work in chunks, which become half as large when the GPU first runs out of memory.

    The second time raises DeviceMemoryError. One object of this class is one memory of that: share it between all
    that an image needs.
    """

    def __init__(self) -> None:
        self.halved = False

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
            else:
                yield result
                start = stop
                continue
            # Out here the error is gone, and with it the tensors that its frames had held.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _step(self, step: int) -> int:
        return -(-step // 2) if self.halved else step

    def _take_note(self, size: int, error: torch.OutOfMemoryError) -> None:
        if self.halved or size == 1:
            tried = "with chunks of half the size too" if self.halved else "with one at a time"
            raise DeviceMemoryError(f"the GPU ran out of memory, {tried}: {LOWER}") from error
        self.halved = True
        _LOG.warning(
            "the GPU ran out of memory with %d at a time; going on with half as many. %s", size, LOWER
        )
