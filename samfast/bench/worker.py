"""One row of the ladder, in a process of its own: `python -m samfast.bench.worker JOB.json RESULT.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from samfast.bench.row import Job, measure_row


def main(arguments: list[str]) -> int:
    """Read the job, measure it, write the row; 0, or 130 when interrupted."""
    job, result = map(Path, arguments)
    try:
        row = measure_row(Job(**json.loads(job.read_text())))
    except KeyboardInterrupt:
        return 130
    result.write_text(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
