"""Jobs on threads, whose results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
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
    ahead: int = 0,
    name: str = "samfast-job",
) -> Generator[T, None, None]:
    """What each job returns, in order; jobs run on so many threads while the next are made.

    max_waiting  most jobs that were made and whose results were not yet taken
    ahead        so many jobs are made before the result of the first is handed out, and remain
                 begun, for a caller who needs the next ones soon; 0: each result comes at once
    name         of the threads

    With no threads a job runs when it is made, so that its result comes at once. Where making the
    next one raises, the results of the jobs before come first; where Ctrl-C or the like ends it,
    those of the jobs that have begun. Jobs do not raise: their results say what failed.
    """
    if workers == 0:
        yield from (job() for job in jobs)
        return
    failure: Exception | None = None
    with ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        waiting: deque[Future[T]] = deque()
        made = iter(jobs)
        try:
            while failure is None:
                try:
                    waiting.append(pool.submit(next(made)))
                except StopIteration:
                    break
                except Exception as error:  # raised after the results of earlier jobs
                    failure = error
                while len(waiting) > ahead and (waiting[0].done() or len(waiting) > max_waiting):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except (GeneratorExit, Exception):
            raise
        except BaseException:  # Ctrl-C: what has begun is still handed out
            pool.shutdown(cancel_futures=True)
            while waiting and not waiting[0].cancelled():
                yield waiting.popleft().result()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # else the traceback's frames would keep it in a cycle
