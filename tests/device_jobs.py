"""Running a `DeviceJob` to its end."""

from __future__ import annotations

from typing import TypeVar

from samfast.device.transfer import DeviceJob

T = TypeVar("T")


def run_to_completion(job: DeviceJob[T]) -> T:
    """The job's result, waiting for the device wherever the job would."""
    while True:
        try:
            next(job)
        except StopIteration as stop:
            result: T = stop.value
            return result
