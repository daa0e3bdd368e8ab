"""Rows of an earlier run that need not be measured again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from samfast.errors import InputError

SAME = (
    "device",
    "gpu",
    "driver",
    "cuda",
    "torch",
    "triton",
    "samfast",
    "commit",
    "dirty",
    "cpu",
    "threads",
    "tf32",
    "tf32_convolutions",
    "settings",
)
"""What two stamps must agree in for their figures to be of one run."""

FINISHED = ("ok", "wrong")


def is_finished(row: dict[str, Any]) -> bool:
    """Whether a row was measured to the end, with whatever outcome."""
    return str(row["status"]).partition(":")[0] in FINISHED


def finished(path: str | os.PathLike[str], stamp: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a `samfast bench --json` file that were measured to the end, on this machine, by
    this commit.

    stamp  of this run. Of a tree with uncommitted changes nothing is kept: what changed since is
           not known
    A file that is not there yet has no rows. Raises InputError for one that holds no rows.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be resumed from: {type(error).__name__}: {error}; name a file that "
            "samfast bench wrote"
        ) from error
    known = isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get("environment"), dict) and "status" in row
        for row in rows
    )
    if not known:
        raise InputError(
            f"{path}: holds no rows of a benchmark; name a file that samfast bench wrote"
        )
    if stamp["dirty"]:
        return []
    return [
        row
        for row in rows
        if is_finished(row) and all(row["environment"].get(key) == stamp[key] for key in SAME)
    ]
