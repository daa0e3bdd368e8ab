"""Files of results: rows of `samfast bench` and what `samfast eval` found, checked before they are
used.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from samfast.bench.rivals import RIVALS
from samfast.errors import InputError
from samfast.recipes import RECIPES

Row = dict[str, Any]

FIGURES = (
    "encoder_images_per_second",
    "images_per_second",
    "loaded_images_per_second",
    "peak_memory_bytes",
    "first_call_seconds",
    "compile_seconds",
    "miou",
    "mask_iou",
    "max_relative_error",
    "share_of_ceiling",
    "spread",
)
"""Keys of a row whose values are numbers, or None where there was nothing to measure; mask_iou is
its agreement's."""

LONGEST = 300
"""Characters of a word or message that are kept."""


@dataclass(frozen=True)
class Results:
    """What files hold.

    rows    of `samfast bench`, as `samfast.bench.job.blank` lists their keys, in the files' order
    scores  results of `samfast eval`, each with its "file"'s name
    """

    rows: tuple[Row, ...] = ()
    scores: tuple[Row, ...] = ()

    def __add__(self, other: Results) -> Results:
        return Results(self.rows + other.rows, self.scores + other.scores)


def read(path: str | os.PathLike[str]) -> Results:
    """The results in a JSON file: rows of `samfast bench` or cpu_vit_b.py, results of `samfast
    eval`, or both.

    Raises InputError for a file that is missing or unreadable, holds anything else, or whose
    figures are none.
    """
    content = load(path)
    found = Results()
    for place, row in _entries(content, str(path)):
        if not isinstance(row.get("environment"), dict):
            raise InputError(
                f"{place}: has no environment, so nobody knows what was measured; measure it again"
            )
        if _is_row(row):
            found += Results(rows=(_checked(row, place),))
        elif _is_score(row):
            found += Results(scores=(_scored(row, place, Path(path).name),))
        else:
            raise InputError(
                f"{place}: is neither a row of samfast bench nor a result of samfast eval; name a "
                "file that one of "
                "them wrote with --json"
            )
    if not (found.rows or found.scores):
        raise InputError(
            f"{path}: holds no rows; name a file that samfast bench --json has written"
        )
    return found


def load(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds; InputError if it is missing, unreadable or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the name") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path}: cannot be read as JSON: {reason}; name a file that samfast bench --json has "
            "written"
        ) from error


def ladder_order(name: str) -> tuple[int, int]:
    """Where a recipe stands: the rivals first, then the recipes from rung to rung, then names that
    are not known.
    """
    for rank, names in enumerate((list(RIVALS), list(RECIPES))):
        if name in names:
            return rank, names.index(name)
    return (0, len(RIVALS)) if is_rival(name) else (2, 0)


def is_rival(name: str) -> bool:
    """Whether a row's recipe is another implementation."""
    return name.startswith("rival:")


def place(row: Row) -> str:
    """The GPU, or the CPU, that a row was measured on."""
    environment = row["environment"]
    if environment.get("gpu"):
        return plain(environment["gpu"])
    threads = environment.get("threads")
    return plain(
        f"CPU {environment.get('cpu') or 'unknown'}" + (f", {threads} threads" if threads else "")
    )


def spread_bounds(rate: float, spread: float | None) -> tuple[float, float]:
    """From where to where a rate's whisker goes: the spread of its runs, half to each side, never
    below 0.
    """
    half = rate * (spread or 0.0) / 2
    return max(0.0, rate - half), rate + half


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value out of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> str:
    """A word or message out of a file as one printable line."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _entries(content: Any, path: str) -> Iterator[tuple[str, Row]]:
    """Each row, and words for where it is."""
    if isinstance(content, dict) and isinstance(content.get("rows"), list) and "what" in content:
        content = [_variant(row, content) for row in content["rows"]]
    elif isinstance(content, dict) and _is_score(content):
        yield path, content
        return
    if not isinstance(content, list):
        raise InputError(
            f"{path}: holds no list of rows but {type(content).__name__}; name a file that samfast "
            "bench --json has "
            "written"
        )
    for index, row in enumerate(content):
        if not isinstance(row, dict):
            raise InputError(
                f"{path}: row {index} is no row but {type(row).__name__}; name a file of samfast "
                "bench"
            )
        yield f"{path}, row {index}", row


def _variant(row: Any, content: Row) -> Any:
    """A row of benchmarks/cpu_vit_b.py, of one image and one implementation, with the keys of
    `samfast bench`.
    """
    if not isinstance(row, dict) or not is_number(row.get("seconds")) or not row["seconds"]:
        return row
    name, _, kind = str(row.get("variant")).partition("/")
    rival = name in {other.removeprefix("rival:") for other in RIVALS}
    most, imports = row.get("peak_resident_bytes"), row.get("imports_resident_bytes")
    return {
        "recipe": f"rival:{name} {kind}" if rival else f"{name} {kind}",
        "model": "vit_b",
        "weights": "random",
        "batch_size": 1,
        "encoder_images_per_second": 1 / row["seconds"],
        "peak_memory_bytes": most - imports if is_number(most) and is_number(imports) else None,
        "max_relative_error": row.get("relative_error"),
        "spread": row.get("spread"),
        "status": "ok" if row.get("parity") else "wrong: no parity with the original",
        "environment": content.get("environment"),
    }


def _is_row(row: Row) -> bool:
    return "recipe" in row and "batch_size" in row and "status" in row and "model" in row


def _is_score(row: Row) -> bool:
    return "model" in row and "masks" in row and isinstance(row.get("point", row.get("box")), dict)


def _checked(row: Row, place: str) -> Row:
    """The row with words that can be shown; InputError if one of its figures is none."""
    agreement = row.get("agreement")
    if isinstance(agreement, dict):
        row = {**row, "mask_iou": agreement.get("mask_iou")}
    size = row["batch_size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(
            f"{place}: batch_size is {plain(size)!r}, not a whole number of at least 1; measure it "
            "again"
        )
    for key in FIGURES:
        value = row.get(key)
        if value is not None and (not is_number(value) or value < 0):
            raise InputError(
                f"{place}: {key} is {plain(value)!r}, not a number from 0; measure it again"
            )
    words = {
        key: plain(row.get(key, "unknown")) for key in ("recipe", "model", "weights", "status")
    }
    return dict.fromkeys(FIGURES) | row | words


def _scored(row: Row, place: str, file: str) -> Row:
    for prompt in ("point", "box"):
        miou = (row.get(prompt) or {}).get("miou")
        if miou is not None and not (is_number(miou) and 0 <= miou <= 1):
            raise InputError(
                f"{place}: {prompt} miou is {plain(miou)!r}, not a number from 0 to 1; measure it "
                "again"
            )
    words = {
        "recipe": plain(row.get("recipe") or row.get("name") or "unknown"),
        "model": plain(row["model"]),
    }
    return row | words | {"file": plain(file)}
