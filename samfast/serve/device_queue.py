"""Jobs for the device as awaitables: callers on event loops, work on the device's thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from samfast.errors import (
    DeviceMemoryError,
    ImageError,
    InputError,
    PromptError,
    SamfastError,
)
from samfast.serve.batch_policy import BatchPolicy, Job, Operation, QueueFullError, Urgency
from samfast.serve.device_worker import DeviceWorker
from samfast.serve.metrics import Metrics
from samfast.serve.problems import ProblemError, draining, overloaded

MAX_FAILURES = 8
"""After a failed assertion of a kernel, every later call of CUDA fails: so many batches in a row
that fail for no caller's fault mean that the process must be started again."""

Handler = Callable[[list[Any]], Sequence[Any]]
"""Does the tasks of a batch on the device's thread; an Exception stands for a task that failed."""


@dataclass(eq=False)
class Ticket:
    """What a job of the device's thread does, and who waits for its result.

    loop    the event loop of who waits
    settle  called there with the result, or with a ProblemError
    """

    task: Any
    loop: asyncio.AbstractEventLoop
    settle: Callable[[Any], None]


class FutureTicket(Ticket):
    """A ticket with a future, made on an event loop; cancelling it drops the job."""

    def __init__(self, task: Any) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(task, loop, self._settle)
        self.future: asyncio.Future[Any] = loop.create_future()

    def _settle(self, result: Any) -> None:
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
            self.future.exception()  # seen, also if the caller has left
        else:
            self.future.set_result(result)


T = TypeVar("T", bound=Ticket)


class DeviceQueue:
    """Submits jobs from event loops to the device's thread and brings the results back.

    handlers  what is done for each operation
    policy    which jobs come next
    warm_up   runs on the thread before the first batch; `warm` is done then
    """

    def __init__(
        self,
        handlers: Mapping[Operation, Handler],
        policy: BatchPolicy[Ticket],
        warm_up: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        self._handlers, self._metrics = handlers, metrics
        self._worker = DeviceWorker(policy, self._run, warm_up)
        self._draining = False
        self._failures = 0
        metrics.watch_queue(self._worker.depths)

    def start(self) -> Future[None]:
        """Start the thread; returns the future of its warm-up."""
        self._worker.start()
        return self._worker.warm

    def stop(self, seconds: float) -> bool:
        """Refuse new jobs and finish those that wait; False if that takes longer."""
        self._draining = True
        return self._worker.stop(seconds)

    @property
    def failed(self) -> bool:
        """Whether the warm-up failed, or so many batches in a row that the device must be lost."""
        warm = self._worker.warm
        return (warm.done() and warm.exception() is not None) or self._failures >= MAX_FAILURES

    def submit(
        self, operation: Operation, urgency: Urgency, cost: int, client: str, ticket: T
    ) -> Job[T]:
        """Let a job wait. Raises ProblemError: 429 if too many wait, 503 if the server ends or its
        model has failed.
        """
        if self._draining:
            raise draining()
        if self.failed:
            raise ProblemError(503, "model_failed", "the model does not run; see the log")
        job = Job(operation, urgency, cost, client, time.monotonic(), ticket)
        try:
            self._worker.submit(cast("Job[Ticket]", job))
        except QueueFullError as error:
            self._metrics.refused.labels(urgency.value).inc()
            raise overloaded(error.retry_after) from None
        return job

    def submit_task(
        self, operation: Operation, urgency: Urgency, cost: int, client: str, task: Any
    ) -> Job[FutureTicket]:
        """As `submit`, from an event loop, on which `payload.future` has the result. Cancelling the
        future drops the job.
        """
        job = self.submit(operation, urgency, cost, client, FutureTicket(task))

        def done(future: asyncio.Future[Any]) -> None:
            if future.cancelled():
                self.discard(job)

        job.payload.future.add_done_callback(done)
        return job

    async def run(
        self, operation: Operation, urgency: Urgency, cost: int, client: str, task: Any
    ) -> Any:
        """The result of a job, which is dropped if the caller is cancelled. Raises as `submit`."""
        return await self.submit_task(operation, urgency, cost, client, task).payload.future

    def discard(self, job: Job[T]) -> None:
        """Drop a job for which nobody waits any more. Call it on the ticket's event loop."""
        if job.cancelled:
            return
        self._metrics.dropped.inc()
        self._worker.discard(cast("Job[Ticket]", job))
        if isinstance(job.payload, FutureTicket):
            job.payload.future.cancel()

    def promote(self, job: Job[T], urgency: Urgency) -> None:
        """Make a job that waits more urgent."""
        self._worker.promote(cast("Job[Ticket]", job), urgency)

    def run_waiting(self, *operations: Operation) -> None:
        """On the device's thread, between the steps of a long job: run a batch that is due."""
        self._worker.run_waiting(*operations)

    def _run(self, jobs: list[Job[Ticket]]) -> None:
        """Do a batch, on the device's thread."""
        jobs = [job for job in jobs if not job.cancelled]
        if not jobs:
            return
        name, now = jobs[0].operation.value, time.monotonic()
        self._metrics.batch_jobs.labels(name).observe(len(jobs))
        self._metrics.batch_cost.labels(name).observe(sum(job.cost for job in jobs))
        self._metrics.stages.observe(f"{name}_queue", [now - job.arrived for job in jobs])
        try:
            with self._metrics.stage(name):
                results = self._handlers[jobs[0].operation]([job.payload.task for job in jobs])
        except Exception as error:
            self._failures += 1
            _settle(jobs, [error] * len(jobs))
            raise
        self._failures = self._failures + 1 if all(map(_is_ours, results)) else 0
        _settle(jobs, results)


def _is_ours(result: Any) -> bool:
    """Whether this is an error that no caller has caused, such as one of CUDA."""
    return isinstance(result, Exception) and not isinstance(result, SamfastError)


def _settle(jobs: Sequence[Job[Ticket]], results: Sequence[Any]) -> None:
    """Hand each result to who waits for it, on the event loop of each, in one step for a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job[Ticket], Any]]] = {}
    for job, result in zip(jobs, results, strict=True):
        by_loop.setdefault(job.payload.loop, []).append((job, result))

    def settle(pairs: list[tuple[Job[Ticket], Any]]) -> None:
        for job, result in pairs:
            if not job.cancelled:
                is_error = isinstance(result, Exception)
                job.payload.settle(problem_of(result) if is_error else result)

    for loop, pairs in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, pairs)


def problem_of(error: Exception) -> ProblemError:
    """The engine's error as what a request is refused with."""
    if isinstance(error, ProblemError):
        return error
    for kind, code in (
        (PromptError, "bad_prompt"),
        (ImageError, "bad_image"),
        (InputError, "bad_request"),
    ):
        if isinstance(error, kind):
            return ProblemError(422, code, str(error))
    if isinstance(error, DeviceMemoryError | MemoryError) or "out of memory" in str(error):
        return ProblemError(
            503, "out_of_memory", "the device's memory does not suffice now", retry_after=5
        )
    if isinstance(error, SamfastError):
        return ProblemError(500, "model_error", str(error))
    return ProblemError(500, "internal_error", "the server failed; its log says why")
