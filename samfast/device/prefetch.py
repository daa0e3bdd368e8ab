"""Making items on a thread before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], count: int = 1) -> Generator[T, None, None]:
    """The items, up to `count` of which are made on a thread before they are requested.

    An error is raised where its item would have come. The thread ends with the items, or when the
    iterator is closed or deleted, which waits for the item in progress.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="samfast-prefetch")
    waiting: deque[Future[T | None]] = deque()
    try:
        waiting.extend(pool.submit(next, items, None) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
