"""The one thread that uses the device, fed by a `BatchPolicy`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from samfast.serve.batch_policy import BatchPolicy, Job, Operation, Urgency

P = TypeVar("P")

_LOG = logging.getLogger("samfast.serve")


class DeviceWorker(Generic[P]):
    """Runs batches of jobs on a thread of its own, which nothing else may use the device beside.

    policy  which jobs come next
    run     runs a batch on the thread; it tells its callers of errors itself
    first   runs once on the thread, before the first batch: the warm-up, after which `warm` is done

    All methods may be called from any thread.
    """

    def __init__(
        self,
        policy: BatchPolicy[P],
        run: Callable[[list[Job[P]]], None],
        first: Callable[[], None],
    ) -> None:
        self._policy, self._run, self._first = policy, run, first
        self._changed = threading.Condition()
        self._idle = self._ending = False
        self.warm: Future[None] = Future()
        self._thread = threading.Thread(target=self._loop, name="samfast-device", daemon=True)

    def start(self) -> None:
        """Start the thread, whose first work is the warm-up."""
        self._thread.start()

    def submit(self, job: Job[P]) -> None:
        """Let a job wait; QueueFullError if too many wait already."""
        with self._changed:
            self._policy.submit(job)
            # A thread that waits for company need not be woken by each one that comes: with many
            # clients that costs more than all else that is done for a job here.
            if self._idle or self._policy.enough(job.operation):
                self._changed.notify()

    def discard(self, job: Job[P]) -> None:
        """Drop a job whose caller has left; one that runs already is finished for nobody."""
        job.cancelled = True
        with self._changed:
            self._policy.discard(job)

    def promote(self, job: Job[P], urgency: Urgency) -> None:
        """Make a job that waits more urgent."""
        with self._changed:
            self._policy.promote(job, urgency)
            self._changed.notify()

    def depths(self) -> dict[tuple[Operation, Urgency], int]:
        """How many jobs of each class wait."""
        with self._changed:
            return self._policy.depths()

    def stop(self, seconds: float) -> bool:
        """Finish what waits, and end the thread; False if that takes longer than `seconds`."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def run_waiting(self, *operations: Operation) -> None:
        """On the device's thread, between the steps of a long job: run a batch that is ready now,
        if it is of these operations.
        """
        with self._changed:
            batch = self._policy.next_batch(time.monotonic(), operations)
        if batch:
            self._timed(batch)

    def _loop(self) -> None:
        try:
            self._first()
        except BaseException as error:
            self.warm.set_exception(error)
            return
        self.warm.set_result(None)
        while True:
            with self._changed:
                while (wait := self._policy.wait_seconds(time.monotonic())) != 0:
                    if wait is None and self._ending:
                        return
                    self._idle = wait is None
                    self._changed.wait(wait)
                batch = self._policy.next_batch(time.monotonic())
            self._timed(batch)

    def _timed(self, batch: list[Job[P]]) -> None:
        start = time.monotonic()
        try:
            self._run(batch)
        except BaseException:  # the thread must outlive a bug in one batch
            _LOG.exception("a batch of %s failed", batch[0].operation.value)
        with self._changed:
            self._policy.finished(batch[0].operation, len(batch), time.monotonic() - start)
