"""Files are written on threads, and what became of each image is told in order all the same."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from samfast.cli.image_files import ImageFile
from samfast.cli.segment_results import MAX_WAITING, Outcome, in_order


def outcome(number: int) -> Outcome:
    return Outcome(ImageFile(Path(f"{number}.jpg"), str(number), f"{number}.jpg", number))


def numbers(outcomes):
    return [each.file.number for each in outcomes]


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_order_from_other_threads(workers):
    seen = set()

    def job(number):
        seen.add(threading.current_thread())
        time.sleep(0.02 if number % 3 == 0 else 0)
        return outcome(number)

    jobs = ((lambda n=n: job(n)) for n in range(40))
    assert numbers(in_order(jobs, workers)) == list(range(40))
    assert threading.current_thread() not in seen and 1 <= len(seen) <= workers


@pytest.mark.parametrize("ended", [KeyboardInterrupt, ValueError])
def test_what_has_begun_is_told_before_the_exception(ended):
    begun: list[int] = []
    told: list[Outcome] = []
    released = threading.Event()

    def job(number):
        begun.append(number)
        released.wait(10)
        return outcome(number)

    def jobs():
        for n in range(3):
            yield lambda n=n: job(n)
        while not begun:
            time.sleep(0.001)
        released.set()
        raise ended("now")

    with pytest.raises(ended):
        told.extend(in_order(jobs(), 1))
    assert numbers(told) == begun and begun[0] == 0


def test_a_slow_disk_holds_back_the_images():
    made, released = [], threading.Event()

    def jobs():
        for n in range(3 * MAX_WAITING):
            made.append(n)
            yield lambda n=n: released.wait(10) and outcome(n)

    results = in_order(jobs(), 1)
    threading.Timer(0.2, released.set).start()
    first = next(results)
    assert first.file.number == 0 and len(made) <= MAX_WAITING + 1
    assert numbers(results) == list(range(1, 3 * MAX_WAITING))
