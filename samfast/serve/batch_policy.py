"""Which jobs the device takes next: a policy without tensors, threads or HTTP.

Every job has a class, by what it does and how urgent it is, and a class has a patience. A class
that has jobs is due that long after its oldest job arrived or after its last batch, whichever is
later, and the class that is due first is served. So clicks go before uploads and uploads before
bulk, however many wait, and each class gets a batch whenever it has waited for its patience:
nothing starves. Within a class the clients take turns, one job each.

Jobs that do the same are batched, up to a cost. A batch begins at once if it is as large as the
last one of its operation, or when its oldest job has waited for `max_wait`: a lone client never
waits for company, and many clients that click in turn keep being batched.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

P = TypeVar("P")


class Operation(Enum):
    """What the device does for a job; only jobs of one operation share a batch."""

    DECODE = "decode"
    ENCODE = "encode"
    SEGMENT = "segment"
    COPY = "copy"


class Urgency(Enum):
    """Who waits for a job: a person who clicked, an upload that will be clicked, or nobody."""

    CLICK = "click"
    UPLOAD = "upload"
    BULK = "bulk"


PATIENCE = {
    (Operation.DECODE, Urgency.CLICK): 0.0,
    (Operation.COPY, Urgency.CLICK): 0.0,
    (Operation.ENCODE, Urgency.CLICK): 0.1,
    (Operation.ENCODE, Urgency.UPLOAD): 1.0,
    (Operation.SEGMENT, Urgency.BULK): 10.0,
    (Operation.ENCODE, Urgency.BULK): 20.0,
}
"""Seconds that a class waits for more urgent ones at most, before it gets a batch."""


@dataclass(eq=False)
class Job(Generic[P]):
    """A job that waits.

    cost       objects to decode or images to encode
    client     whose turn it is; clients of a class take turns
    arrived    seconds on the caller's clock
    cancelled  its client has left: it will be dropped
    """

    operation: Operation
    urgency: Urgency
    cost: int
    client: str
    arrived: float
    payload: P
    cancelled: bool = False


class QueueFullError(Exception):
    """No more jobs are taken. `retry_after`: seconds after which there will be room."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class _Lane(Generic[P]):
    """The jobs of one class: a queue for each client, and the clients in turn."""

    def __init__(self, patience: float) -> None:
        self.patience, self.served = patience, -math.inf
        self.turns: OrderedDict[str, deque[Job[P]]] = OrderedDict()
        self.jobs: OrderedDict[Job[P], None] = OrderedDict()  # by their arrival

    def __len__(self) -> int:
        return len(self.jobs)

    def append(self, job: Job[P]) -> None:
        self.turns.setdefault(job.client, deque()).append(job)
        first = next(iter(self.jobs), job)
        self.jobs[job] = None
        if job.arrived < first.arrived:  # it has waited in another class
            self.jobs.move_to_end(job, last=False)

    def oldest(self) -> float | None:
        """When the job that waits longest arrived."""
        return next(iter(self.jobs)).arrived if self.jobs else None

    def due(self) -> float | None:
        """When the class is to get a batch, if it has jobs."""
        oldest = self.oldest()
        return None if oldest is None else max(oldest, self.served) + self.patience

    def head(self) -> Job[P] | None:
        """The job whose turn it is."""
        return next(iter(self.turns.values()))[0] if self.turns else None

    def pop(self) -> Job[P]:
        """Take the job whose turn it is; its client goes to the end."""
        client, queue = self.turns.popitem(last=False)
        job = queue.popleft()
        del self.jobs[job]
        if queue:
            self.turns[client] = queue
        return job

    def discard(self, job: Job[P]) -> bool:
        """Take that job out; False if it is not here."""
        if job not in self.jobs:
            return False
        del self.jobs[job]
        queue = self.turns[job.client]
        queue.remove(job)
        if not queue:
            del self.turns[job.client]
        return True


class BatchPolicy(Generic[P]):
    """The jobs that wait, and which of them the device takes next.

    max_cost    of a batch of each operation; a job above it has a batch of its own
    max_queued  jobs of each urgency; `submit` refuses more. Bulk cannot fill the queue for clicks
    max_wait    seconds that a job waits for company at most

    Times are seconds on any one clock. Not safe to call from several threads at once.
    """

    def __init__(
        self,
        max_cost: Mapping[Operation, int],
        *,
        max_queued: Mapping[Urgency, int],
        max_wait: float,
    ) -> None:
        self._max_cost, self._max_queued, self._max_wait = max_cost, max_queued, max_wait
        self._lanes: dict[tuple[Operation, Urgency], _Lane[P]] = {
            key: _Lane(patience) for key, patience in PATIENCE.items()
        }
        self._of_operation = {
            each: [lane for (operation, _), lane in self._lanes.items() if operation is each]
            for each in Operation
        }
        self._last_count = dict.fromkeys(Operation, 1)
        self._seconds_per_job = dict.fromkeys(Operation, 0.0)

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def depths(self) -> dict[tuple[Operation, Urgency], int]:
        """How many jobs of each class wait."""
        return {key: len(lane) for key, lane in self._lanes.items()}

    def submit(self, job: Job[P]) -> None:
        """Let a job wait; QueueFullError if too many wait already."""
        waiting = sum(
            len(lane) for (_, urgency), lane in self._lanes.items() if urgency is job.urgency
        )
        if waiting >= self._max_queued[job.urgency]:
            seconds = sum(
                len(lane) * self._seconds_per_job[operation]
                for (operation, _), lane in self._lanes.items()
            )
            raise QueueFullError(min(60.0, max(1.0, seconds)))
        self._lanes[job.operation, job.urgency].append(job)

    def discard(self, job: Job[P]) -> bool:
        """Take a job out, as when its client has left; False if the device has it already."""
        return self._lanes[job.operation, job.urgency].discard(job)

    def promote(self, job: Job[P], urgency: Urgency) -> None:
        """Make a waiting job more urgent, as when somebody clicks on an upload that waits."""
        if self.discard(job):
            job.urgency = urgency
            self._lanes[job.operation, urgency].append(job)

    def wait_seconds(self, now: float) -> float | None:
        """Seconds until the next batch begins, 0 for now; None: nothing waits."""
        chosen = self._next_operation()
        if chosen is None:
            return None
        operation, oldest = chosen
        return 0.0 if self.enough(operation) else max(0.0, oldest + self._max_wait - now)

    def enough(self, operation: Operation) -> bool:
        """Whether as many jobs of this operation wait as its last batch had."""
        waiting = sum(map(len, self._of_operation[operation]))
        return waiting >= self._last_count[operation]

    def next_batch(
        self, now: float, only: Collection[Operation] = tuple(Operation)
    ) -> list[Job[P]]:
        """Take out the jobs of the next batch; none if nothing waits.

        only  leave the jobs of other operations out
        """
        chosen = self._next_operation(only)
        if chosen is None:
            return []
        operation, room = chosen[0], self._max_cost[chosen[0]]
        batch: list[Job[P]] = []
        for _, lane in self._by_due([operation]):
            while (job := lane.head()) is not None and (job.cost <= room or not batch):
                batch.append(lane.pop())
                room -= job.cost
                lane.served = now
            if job is not None:
                break  # nothing of a later class goes before it
        self._last_count[operation] = len(batch)
        return batch

    def finished(self, operation: Operation, jobs: int, seconds: float) -> None:
        """Learn how long a batch took, for `QueueFullError.retry_after`."""
        known = self._seconds_per_job[operation]
        self._seconds_per_job[operation] += 0.2 * (seconds / max(1, jobs) - known)

    def _by_due(self, only: Collection[Operation]) -> list[tuple[Operation, _Lane[P]]]:
        """The classes of these operations that have jobs, in the order of being due."""
        due = [
            (when, key[0], lane)
            for key, lane in self._lanes.items()
            if key[0] in only and (when := lane.due()) is not None
        ]
        due.sort(key=lambda each: each[0])
        return [(operation, lane) for _, operation, lane in due]

    def _next_operation(
        self, only: Collection[Operation] = tuple(Operation)
    ) -> tuple[Operation, float] | None:
        """The operation of the next batch, and when the oldest job of its class arrived."""
        lanes = self._by_due(only)
        if not lanes:
            return None
        operation, lane = lanes[0]
        oldest = lane.oldest()
        assert oldest is not None
        return operation, oldest
