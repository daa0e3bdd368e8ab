"""The scheduler: jobs step while the next batch is queued; results and errors come in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from samfast.device import pipeline
from samfast.device.pipeline import JobQueue
from samfast.device.transfer import DeviceJob
from samfast.errors import DeviceMemoryError


class Source:
    """Queues one batch an item, whose job takes some steps and then delivers the item's number.

    events  what was done, in order: ("queue", item) and ("step", item)
    broken  error that an item's job raises in its second step
    """

    def __init__(self, steps: list[int], *, deferred: bool = True) -> None:
        self.steps, self.deferred = steps, deferred
        self.events: list[tuple[str, int]] = []
        self.broken: dict[int, Exception] = {}

    def __call__(self, queue: JobQueue[int]) -> Iterator[None]:
        queue.deferred = self.deferred
        for item in range(len(self.steps)):
            queue.current_item = item
            self.events.append(("queue", item))
            queue.expect(item, 1)
            queue.next_batch()
            queue.start(item, self._job(item, queue))
            yield

    def _job(self, item: int, queue: JobQueue[int]) -> DeviceJob[None]:
        for _ in range(self.steps[item]):
            yield
            self.events.append(("step", item))
            if item in self.broken:
                raise self.broken[item]
        queue.put(item, 0, item)


def test_a_job_waits_until_the_next_batch_is_queued() -> None:
    source = Source([1, 1, 1])
    assert list(pipeline.run(source)) == [[0], [1], [2]]
    assert source.events == [
        *(("queue", 0), ("queue", 1), ("step", 0)),
        *(("queue", 2), ("step", 1), ("step", 2)),
    ]


def test_without_waiting_jobs_end_before_the_next_batch() -> None:
    source = Source([2, 1], deferred=False)
    assert list(pipeline.run(source)) == [[0], [1]]
    assert [item for _, item in source.events] == [0, 0, 0, 1, 1]


def test_results_come_in_order_though_later_jobs_end_earlier() -> None:
    assert list(pipeline.run(Source([5, 1, 3, 1]))) == [[0], [1], [2], [3]]


def test_few_jobs_are_in_progress() -> None:
    source, longest = Source([50] * 30), 0

    def observed(queue: JobQueue[int]) -> Iterator[None]:
        nonlocal longest
        for _ in source(queue):
            longest = max(longest, len(queue))
            yield

    assert len(list(pipeline.run(observed))) == 30
    assert longest == pipeline.MAX_JOBS + 2  # and those of the last two batches


@pytest.mark.parametrize("deferred", [False, True])
def test_an_error_comes_after_the_results_before_it(deferred: bool) -> None:
    source = Source([9, 1, 1, 1], deferred=deferred)
    source.broken = {1: ValueError("one"), 2: ValueError("two")}
    results = pipeline.run(source)
    assert next(results) == [0]
    with pytest.raises(ValueError, match="one"):
        next(results)
    assert ("queue", 3) not in source.events


def test_an_error_of_the_source_is_about_its_current_item() -> None:
    def source(queue: JobQueue[int]) -> Iterator[None]:
        yield from Source([3, 3])(queue)
        queue.current_item = 2
        raise ValueError("two")

    results = pipeline.run(source)
    assert [next(results), next(results)] == [[0], [1]]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_out_of_memory_says_what_to_lower() -> None:
    source = Source([1])
    source.broken = {0: torch.OutOfMemoryError("CUDA out of memory")}
    with pytest.raises(DeviceMemoryError, match="points_per_batch") as caught:
        list(pipeline.run(source))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_an_item_has_all_its_parts_in_order() -> None:
    def source(queue: JobQueue[str]) -> Iterator[None]:
        queue.expect(0, 2)
        queue.put(0, 1, "second")
        yield
        queue.put(0, 0, "first")
        yield

    assert list(pipeline.run(source)) == [["first", "second"]]
