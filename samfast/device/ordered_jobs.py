"""Jobs on threads, whose results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

MAX_WAITING = 16
"""The default of `in_order`."""


def in_order(
    jobs: Iterable[Callable[[], T]],
    workers: int,
    *,
    max_waiting: int = MAX_WAITING,
    name: str = "samfast-job",
) -> Iterator[T]:
    """What each job returns, in order; jobs run on so many threads while the next are made.

    max_waiting  most jobs that were made and whose results were not yet taken
    name         of the threads

    With no threads a job runs when it is made, so that its result comes at once. Where making the
    next one ends with an exception, Ctrl-C included, the results of the jobs that have begun come
    first. Jobs do not raise: their results say what failed.
    """
    if workers == 0:
        yield from (job() for job in jobs)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                while waiting and (waiting[0].done() or len(waiting) > max_waiting):
                    yield waiting.popleft().result()
        except GeneratorExit:
            raise
        except BaseException:
            pool.shutdown(cancel_futures=True)
            while waiting and not waiting[0].cancelled():
                yield waiting.popleft().result()
            raise
        else:
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
