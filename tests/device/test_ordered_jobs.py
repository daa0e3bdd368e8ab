"""Jobs run on threads, and their results come in order all the same."""

from __future__ import annotations

import threading
import time

import pytest

from samfast.device.ordered_jobs import MAX_WAITING, in_order


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_order_from_other_threads(workers):
    seen = set()

    def job(number):
        seen.add(threading.current_thread())
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number

    jobs = ((lambda n=n: job(n)) for n in range(40))
    assert list(in_order(jobs, workers)) == list(range(40))
    assert threading.current_thread() not in seen and 1 <= len(seen) <= workers


@pytest.mark.parametrize("ended", [KeyboardInterrupt, ValueError])
def test_what_has_begun_is_told_before_the_exception(ended):
    begun: list[int] = []
    told: list[int] = []
    released = threading.Event()

    def job(number):
        begun.append(number)
        released.wait(10)
        return number

    def jobs():
        for n in range(3):
            yield lambda n=n: job(n)
        while not begun:
            time.sleep(0.001)
        released.set()
        raise ended("now")

    with pytest.raises(ended):
        told.extend(in_order(jobs(), 1))
    assert told == begun and begun[0] == 0


def test_a_slow_disk_holds_back_the_images():
    made, released = [], threading.Event()

    def jobs():
        for n in range(3 * MAX_WAITING):
            made.append(n)
            yield lambda n=n: released.wait(10) and n

    results = in_order(jobs(), 1)
    threading.Timer(0.2, released.set).start()
    first = next(results)
    assert first == 0 and len(made) <= MAX_WAITING + 1
    assert list(results) == list(range(1, 3 * MAX_WAITING))


def test_jobs_stay_begun_ahead_of_the_results_that_are_taken():
    made = []

    def jobs():
        for n in range(12):
            made.append(n)
            yield lambda n=n: n

    results = in_order(jobs(), 2, ahead=5)
    for taken in range(7):
        assert next(results) == taken
        assert len(made) == taken + 6
        time.sleep(0.005)  # all of them are done, and still not more are taken than are made
    assert list(results) == list(range(7, 12))
    assert list(in_order(jobs(), 2, ahead=50)) == list(range(12))
