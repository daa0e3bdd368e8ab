"""What is made on another thread while what was made before is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], count: int = 1) -> Generator[T, None, None]:
    """The items, of which up to `count` are made on a thread before anybody asks for them.

    An error is raised where its item would have come. The thread ends with the items, and when the
    iterator is closed or forgotten; it is waited for, which takes as long as one item.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="samfast-ahead")
    waiting: deque[Future[T | None]] = deque()
    try:
        waiting.extend(pool.submit(next, items, None) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
