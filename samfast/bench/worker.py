"""Measure in a separate process: `python -m samfast.bench.worker TASK ANSWER STAGE`.

These are files. A task is {"do": "prepare" or "measure", "job": the fields of a Job}; the answer is
{"answer": ...}, or {"error": ...} in one line. The third file names the stage that is running.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import samfast
from samfast.bench.bench_job import Job
from samfast.bench.fp32_reference import prepare
from samfast.bench.measure_row import measure_row
from samfast.bench.rivals import RIVALS
from samfast.bench.scoring import Scoring
from samfast.user_cache import cache_dir

POLL_SECONDS = 0.2
"""How often the parent looks at the stage."""

MAX_LOG = 4000
"""Characters of a process's stderr that are kept."""


class WorkerError(Exception):
    """Why a process did not answer, in one line; `log` is the end of its stderr."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.log = log


def run_task(
    do: str,
    job: Job,
    *,
    environment: Mapping[str, str] | None = None,
    on_stage: Callable[[str], object] = lambda stage: None,
) -> dict[str, Any]:
    """A task's answer from a process of its own, so that memory, caches and crashes are separate.

    environment  variables to set besides this process's own
    on_stage     called with the name of each stage of the task, as it begins

    Raises WorkerError when it fails, KeyboardInterrupt when it was interrupted.
    """
    package = str(Path(samfast.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(prefix="samfast-bench-") as name:
        task, answer, stage = (Path(name) / file for file in ("task", "answer", "stage"))
        task.write_text(json.dumps({"do": do, "job": asdict(job)}))
        with open(Path(name) / "stderr", "w+b") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-m", "samfast.bench.worker", *map(str, (task, answer, stage))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path, **(environment or {})},
                start_new_session=True,
            )
            try:
                _wait(worker, stage, on_stage)
            finally:
                _end(worker)
            return _read(answer, worker.returncode, _tail(errors))


def main(arguments: list[str]) -> int:
    """Do the task and write the answer; 0, 1 after an error, or 130 when interrupted."""
    source, target, stage = map(Path, arguments)
    task = json.loads(source.read_text())
    fields: dict[str, Any] = task["job"]
    fields |= {name: tuple(fields[name]) for name in ("names", "batch_sizes")}
    if fields["scoring"] is not None:
        fields["scoring"] = Scoring(**fields["scoring"])
    job = Job(**fields)
    if job.recipe in RIVALS:  # rivals write what they tune into the current folder
        folder = cache_dir() / "bench"
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
    try:
        answer: dict[str, Any] = {
            "answer": prepare(job)
            if task["do"] == "prepare"
            else measure_row(job, stage.write_text)
        }
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        traceback.print_exc()
        message = (str(error).strip() or "without a message").splitlines()[0]
        answer = {"error": f"{type(error).__name__}: {message}"}
    target.write_text(json.dumps(answer), encoding="utf-8")
    return int("error" in answer)


def _wait(worker: subprocess.Popen[bytes], stage: Path, on_stage: Callable[[str], object]) -> None:
    """Wait for the process to end, and hand on each stage that it names."""
    last = ""
    while worker.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            worker.wait(POLL_SECONDS)
        name = stage.read_text() if stage.exists() else ""
        if name not in ("", last):
            on_stage(name)
            last = name


def _read(answer: Path, code: int, log: str) -> dict[str, Any]:
    if answer.is_file():
        told = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in told:
            raise WorkerError(told["error"], log)
        row: dict[str, Any] = told["answer"]
        return row
    if code == 130:
        raise KeyboardInterrupt
    last = (log.strip().splitlines() or ["without a message"])[-1]
    raise WorkerError(f"exit code {code}: {last}", log)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End the process and those that it started, such as torch's compile workers."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # all of them have ended
            os.killpg(worker.pid, signal.SIGKILL)
    else:
        worker.kill()
    worker.wait()


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode(errors="replace")[-MAX_LOG:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
