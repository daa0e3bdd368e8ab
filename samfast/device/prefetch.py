"""Making items on a thread before they are needed."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class CallerIterator(Generic[T]):
    """An iterator of the caller, taken from on a thread, where its next item may never come.

    waiting      whether the thread waits for an item
    closed       an item that comes now is late, and ends the thread's work by GeneratorExit
    abandonable  closing does not wait for the item; False after an error, when the caller may go on
                 with the same iterator
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self.changed = threading.Condition()
        self.waiting = False
        self.closed = False
        self.abandonable = True

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self._mark(waiting=True)
        try:
            return next(self._items)
        finally:
            self._mark(waiting=False)

    def _mark(self, *, waiting: bool) -> None:
        with self.changed:
            if self.closed:
                raise GeneratorExit
            self.waiting = waiting
            self.changed.notify_all()


def prefetch(
    items: Iterator[T], count: int = 1, source: CallerIterator[Any] | None = None
) -> Generator[T, None, None]:
    """The items, up to `count` of which are made on a thread before they are requested.

    source  from which the items are made, if it may block

    An error is raised where its item would have come. The thread ends with the items, or when the
    iterator is closed or deleted, which waits for the item in progress, but not for `source`: a
    thread that waits there ends when its item comes, or with the process.
    """
    made: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    places = threading.Semaphore(count)
    closed = threading.Event()
    source = CallerIterator(iter(())) if source is None else source
    done = False

    def make() -> None:
        nonlocal done
        try:
            while True:
                places.acquire()
                if closed.is_set():
                    break
                made.put((next(items), None))
        except StopIteration:
            made.put((None, None))
        except BaseException as error:  # raised where the item is requested
            made.put((None, error))
        finally:
            with suppress(AttributeError, RuntimeError):
                items.close()  # type: ignore[attr-defined]
            with source.changed:
                done = True
                source.changed.notify_all()

    # A daemon: a process can end while its thread waits for an item.
    thread = threading.Thread(target=make, name="samfast-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # else the traceback's frames would keep it in a cycle
            if item is None:
                return
            places.release()
            yield item
    finally:
        closed.set()
        places.release()
        with source.changed:
            source.changed.wait_for(lambda: done or (source.waiting and source.abandonable))
            source.closed = True
            abandoned = not done
        if not abandoned:
            thread.join()
