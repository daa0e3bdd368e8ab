"""Reporting how much of a call's work is done: to a function, or as a bar on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from samfast.errors import InputError
from samfast.types import Progress


@contextmanager
def reporting(
    progress: Progress | bool, total: int | None, unit: str
) -> Iterator[Callable[[int], object]]:
    """A function to call with the steps just done.

    progress  called with all steps done so far and their total; True: a bar of tqdm on stderr, or
              in a notebook; False: nothing
    total     steps of the whole work, or None where that is unknown

    Raises InputError for any other progress.
    """
    if progress is True:
        from tqdm.auto import tqdm

        with tqdm(total=total, unit=unit) as bar:
            yield bar.update
    elif progress is False:
        yield lambda steps: None
    elif callable(progress):
        yield _running_total(progress, total)
    else:
        raise InputError(f"progress={progress!r}; True for a bar, or a function of (done, total)")


def _running_total(progress: Progress, total: int | None) -> Callable[[int], None]:
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        progress(done, total)

    return advance
