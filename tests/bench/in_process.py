"""A ladder's tasks in the process of the tests."""

from __future__ import annotations

from samfast.bench.fp32_reference import prepare
from samfast.bench.measure_row import measure_row
from samfast.bench.worker import WorkerError


def run_task(do, job, *, on_stage=lambda stage: None, **options):
    """As `samfast.bench.worker.run_task`, without a process of its own."""
    try:
        return prepare(job) if do == "prepare" else measure_row(job, on_stage)
    except Exception as error:
        raise WorkerError(f"{type(error).__name__}: {error}", str(error)) from error
