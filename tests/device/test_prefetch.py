"""Items are made ahead on a thread, which ends with the iterator."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from samfast.device.prefetch import CallerIterator, prefetch


def threads() -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("samfast-prefetch")
    ]


def numbers(made: list[int], stop: int = 5) -> Iterator[int]:
    for number in range(stop):
        made.append(number)
        yield number


@pytest.mark.parametrize("count", [1, 3, 9])
def test_order_and_end(count: int) -> None:
    assert list(prefetch(numbers([]), count)) == [0, 1, 2, 3, 4]
    assert list(prefetch(iter(()), count)) == []
    assert not threads()


@pytest.mark.parametrize("count", [1, 2])
def test_so_many_are_made_ahead_and_no_more(count: int) -> None:
    made: list[int] = []
    items = prefetch(numbers(made, 100), count)
    assert not made  # nothing before the first is asked for
    for index in range(3):
        assert next(items) == index
        until = time.monotonic() + 10
        while len(made) < index + 1 + count and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(made) == index + 1 + count
    assert len(threads()) == 1
    items.close()
    assert not threads()
    assert len(made) == 3 + count


def test_a_forgotten_iterator_leaves_no_thread() -> None:
    items = prefetch(numbers([]))
    next(items)
    del items
    assert not threads()


def test_an_error_comes_at_its_turn() -> None:
    def broken() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("gone")

    items = prefetch(broken(), 3)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(items)
    assert not threads()


def test_closing_does_not_wait_for_an_iterator_that_blocks() -> None:
    come, late = threading.Event(), []

    def blocked() -> Iterator[int]:
        yield 0
        come.wait(60)
        yield 1

    source = CallerIterator(blocked())

    def doubled() -> Iterator[int]:
        for number in source:
            yield 2 * number
            late.append(number)

    items = prefetch(doubled(), source=source)
    assert next(items) == 0
    with source.changed:
        assert source.changed.wait_for(lambda: late and source.waiting, 30)
    start = time.monotonic()
    items.close()
    assert time.monotonic() - start < 10
    assert len(threads()) == 1
    come.set()
    until = time.monotonic() + 30
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert not threads()
    assert late == [0]  # what came late went nowhere


def test_after_an_error_closing_waits_so_that_the_caller_can_go_on() -> None:
    source = CallerIterator(iter(slow()))
    items = prefetch((number for number in source), source=source)
    next(items)
    source.abandonable = False
    items.close()
    assert not threads()


def slow() -> Iterator[int]:
    for number in range(100):
        time.sleep(0.02)
        yield number
