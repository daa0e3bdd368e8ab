"""Measuring in a process of its own: `python -m samfast.bench.worker TASK.json ANSWERS.jsonl`.

A task is {"do": "prepare" or "measure", "task": the fields of a Preparation or a Job}. Answers are
lines of JSON, written as they come: {"answer": ...}, and {"error": ...} in one line of words if it
ends with an exception.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samfast.bench.job import Job
from samfast.bench.prepare import Preparation, prepare
from samfast.bench.rivals import RIVALS
from samfast.bench.row import measure_rows
from samfast.bench.scoring import Scoring
from samfast.user_cache import cache_dir


def main(arguments: list[str]) -> int:
    """Do the task and write the answers; 0, 1 after an error, or 130 when interrupted."""
    source, target = map(Path, arguments)
    told = json.loads(source.read_text())
    with open(target, "w", encoding="utf-8") as file:

        def say(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        try:
            for answer in _answers(told["do"], told["task"]):
                say({"answer": answer})
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            traceback.print_exc()
            words = (str(error).strip() or "without a word").splitlines()[0]
            say({"error": f"{type(error).__name__}: {words}"})
            return 1
    return 0


def _answers(do: str, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    if fields.get("scoring") is not None:
        fields["scoring"] = Scoring(**fields["scoring"])
    if do == "prepare":
        yield prepare(Preparation(**fields))
        return
    job = Job(**fields)
    if job.recipe in RIVALS:
        _into_own_folder()
    yield from measure_rows(job)


def _into_own_folder() -> None:
    """Rivals keep what they have tuned in the current directory, which would be the user's."""
    folder = cache_dir() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
