"""Reporting how much of a call's work is done."""

from __future__ import annotations

from collections.abc import Callable

from samfast.types import Progress


def running_total(progress: Progress | None, total: int | None) -> Callable[[int], None]:
    """A function to call with the steps just done, which tells `progress` of all done so far."""
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        if progress is not None:
            progress(done, total)

    return advance
