"""Worker processes: started, listened to, and ended with all that they have started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import samfast
from samfast.bench.job import Job
from samfast.bench.prepare import Preparation

POLL = 0.1
"""Seconds between two looks at what a worker has said."""

LOG_CHARACTERS = 4000


class WorkerError(Exception):
    """A worker ended without having answered everything: why, in one line; `log` is the end of its
    stderr.
    """

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.log = log


def ask(
    task: Job | Preparation,
    *,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """The answers to a task, as they come, from a process of its own: memory, caches and a crash
    are its own.

    timeout      seconds an answer; the process is ended when they are up
    environment  variables to be set for it besides this process's own

    Raises WorkerError when it ends with an error or runs out of time, KeyboardInterrupt when it was
    interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="samfast-bench-") as name:
        folder = Path(name)
        do = "prepare" if isinstance(task, Preparation) else "measure"
        (folder / "task.json").write_text(json.dumps({"do": do, "task": asdict(task)}))
        answers = folder / "answers.jsonl"
        answers.touch()
        command = [
            sys.executable,
            "-m",
            "samfast.bench.worker",
            str(folder / "task.json"),
            str(answers),
        ]
        with open(folder / "stderr", "w+b") as errors, open(answers, encoding="utf-8") as lines:
            worker = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, **_path(), **(environment or {})},
                start_new_session=True,  # so that it can be ended with its own processes
            )
            try:
                yield from _listen(worker, lines, timeout, errors)
            finally:
                _end(worker)


def _listen(
    worker: subprocess.Popen[bytes], lines: IO[str], timeout: float | None, errors: IO[bytes]
) -> Iterator[dict[str, Any]]:
    since = time.monotonic()
    rest = ""
    while True:
        ended = worker.poll() is not None  # looked at first: what it said last is read all the same
        rest += lines.read()
        *whole, rest = rest.split("\n")
        for line in whole:
            said = json.loads(line)
            if "error" in said:
                raise WorkerError(said["error"], _tail(errors))
            yield said["answer"]
            since = time.monotonic()
        if ended:
            break
        if timeout is not None and time.monotonic() - since > timeout:
            raise WorkerError(f"not done within its {timeout:.0f} s", _tail(errors))
        time.sleep(POLL)
    if worker.returncode == 130:
        raise KeyboardInterrupt
    if worker.returncode:
        log = _tail(errors)
        last = log.strip().splitlines()[-1:] or ["without a word"]
        raise WorkerError(f"exit code {worker.returncode}: {last[0]}", log)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """The worker and whatever it has started, such as torch's compiling processes."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # all of them have ended
            os.killpg(worker.pid, signal.SIGKILL)
    else:
        worker.kill()
    worker.wait()


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode(errors="replace")[-LOG_CHARACTERS:]


def _path() -> dict[str, str]:
    """This samfast for the worker, however this process has found it."""
    own = str(Path(samfast.__file__).resolve().parent.parent)
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": own + (os.pathsep + others if others else "")}
