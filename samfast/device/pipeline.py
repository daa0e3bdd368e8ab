"""A scheduler that keeps the device busy: jobs wait only while the next batch is in the queue.

A source queues batches of work on the device and starts jobs about items, whose numbers ascend. A
job is a generator that yields wherever it would wait for the device. After each batch the jobs of
the batches before take a step. Results come in the order of the items, and an error after the
results of all items before its own. Work in progress is bounded, whatever the number of items.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from samfast.device.retry import REMEDY
from samfast.device.transfer import DeviceJob
from samfast.errors import DeviceMemoryError

T = TypeVar("T")

MAX_JOBS = 8
"""The default of `run`."""


@dataclass(eq=False)
class _Job:
    """Work about an item.

    fresh  whether it belongs to the batch just queued, so that waiting for it would idle the device
    """

    item: int
    steps: DeviceJob[None]
    fresh: bool = True


class JobQueue(Generic[T]):
    """Jobs in progress, and the parts of each item's result.

    current_item  the item whose work the source is queueing; an error of the source is about it
    deferred      whether jobs wait until the next batch is queued; otherwise they end at once
    held_bytes    device memory that jobs have left to later jobs; jobs keep it up to date
    failure       the error about the first item that has one, and that item
    """

    def __init__(self) -> None:
        self.current_item = 0
        self.deferred = False
        self.held_bytes = 0
        self.failure: tuple[int, Exception] | None = None
        self._jobs: list[_Job] = []
        self._parts: dict[int, list[T | None]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def expect(self, item: int, parts: int) -> None:
        """Announce an item, whose result has so many parts."""
        self._parts.setdefault(item, [None] * parts)

    def put(self, item: int, index: int, part: T) -> None:
        """Deliver a part of an item's result."""
        self._parts[item][index] = part

    def next_batch(self) -> None:
        """A batch was queued, during which all earlier jobs may wait."""
        for job in self._jobs:
            job.fresh = False

    def start(self, item: int, steps: DeviceJob[None]) -> None:
        """Start a job, up to its first stop."""
        self._jobs.append(_Job(item, steps))
        self._step(self._jobs[-1])

    def advance(self, limit: int) -> None:
        """Step each job that is not fresh, again and again until at most `limit` of them remain."""
        if not self.deferred:
            self.next_batch()
            limit = 0
        while True:
            for job in [job for job in self._jobs if not job.fresh]:
                if job in self._jobs:  # an error drops jobs
                    self._step(job)
            if sum(not job.fresh for job in self._jobs) <= limit:
                return

    def fail(self, item: int, error: Exception) -> None:
        """Note an error about an item, and drop the jobs about it and later items."""
        if isinstance(error, torch.OutOfMemoryError):
            cause, error = error, DeviceMemoryError(f"the GPU ran out of memory: {REMEDY}")
            error.__cause__ = cause
        if self.failure is None or item < self.failure[0]:
            self.failure = item, error
        self._jobs = [job for job in self._jobs if job.item < self.failure[0]]

    def results(self) -> Iterator[list[T]]:
        """The parts of the items that are complete, up to the first that is not."""
        while self._parts:
            item = next(iter(self._parts))
            parts = [part for part in self._parts[item] if part is not None]
            if len(parts) < len(self._parts[item]):
                return
            del self._parts[item]
            yield parts

    def _step(self, job: _Job) -> None:
        try:
            next(job.steps)
        except StopIteration:
            self._jobs.remove(job)
        except Exception as error:  # raised in the order of the items
            self.fail(job.item, error)


def run(
    source: Callable[[JobQueue[T]], Iterator[None]], max_jobs: int = MAX_JOBS
) -> Generator[list[T], None, None]:
    """The parts of each item's result, in order.

    source    queues batches and starts their jobs; stops after each batch
    max_jobs  most jobs of earlier batches in progress when the next batch is queued

    Raises the error of the source or of a job after the results of all items before its own, as
    DeviceMemoryError if the GPU ran out of memory.
    """
    queue: JobQueue[T] = JobQueue()
    batches = source(queue)
    more = True
    while more and queue.failure is None:
        try:
            next(batches)
        except StopIteration:
            more = False
        except Exception as error:  # raised in the order of the items
            queue.fail(queue.current_item, error)
        queue.advance(max_jobs)
        yield from queue.results()
    while len(queue):
        queue.next_batch()  # no further batch follows
        queue.advance(len(queue))
        yield from queue.results()
    if queue.failure is not None:
        failure, queue.failure = queue.failure[1], None
        try:
            raise failure
        finally:
            # Else the traceback's frames would keep the error, and tensors with it, in a cycle.
            del failure
