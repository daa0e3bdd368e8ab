"""Files of rows that `samfast bench` wrote, checked when read."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from samfast.bench.environment import SAME_RUN
from samfast.bench.rivals import RIVALS
from samfast.errors import InputError
from samfast.recipes import RECIPES

Row = dict[str, Any]

FIGURES = (
    *("encoder_images_per_second", "images_per_second", "peak_memory_bytes"),
    *("first_call_seconds", "compile_seconds", "miou", "mask_iou", "max_relative_error"),
    *("share_of_ceiling", "spread"),
)
"""Keys of a row whose values are numbers or None; mask_iou comes from its agreement."""

MAX_TEXT = 300
"""Characters of a text that are kept."""

FINISHED = ("ok", "wrong")
"""Statuses of rows that were measured to the end."""

HINT = "name a file that samfast bench wrote with --json"


def read(path: str | os.PathLike[str]) -> list[Row]:
    """The rows in a JSON file, with the keys of `bench_job.blank`, in the file's order.

    Raises InputError for a file that is missing or unreadable, or that holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the name") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: cannot be read as JSON: {reason}; {HINT}") from error
    if not isinstance(content, list) or not content:
        raise InputError(f"{path}: holds no list of rows; {HINT}")
    return [_checked_row(row, f"{path}, row {index}") for index, row in enumerate(content)]


def finished(path: str | os.PathLike[str], stamp: dict[str, Any]) -> list[Row]:
    """The rows of a file that were measured to the end under an equal stamp; none if it is absent.

    stamp  of this run. A tree with uncommitted changes keeps nothing, for they may differ
    Raises InputError as `read` does.
    """
    rows = read(path) if Path(path).exists() else []
    return [
        {key: value for key, value in row.items() if key != "mask_iou"}
        for row in rows
        if is_finished(row)
        and not stamp["dirty"]
        and all(row["environment"].get(key) == stamp[key] for key in SAME_RUN)
    ]


def is_finished(row: Row) -> bool:
    """Whether a row was measured to the end, with whatever outcome."""
    return str(row["status"]).partition(":")[0] in FINISHED


def has_figures(row: Row) -> bool:
    """Whether a row was measured to the end with the right answers."""
    speeds = row["encoder_images_per_second"] or row["images_per_second"]
    return row["status"] == "ok" and bool(speeds)


def ladder_order(name: str) -> tuple[int, int]:
    """A sorting key: the rivals, the recipes in the table's order, then unknown names."""
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
    threads = f", {environment['threads']} threads" if environment.get("threads") else ""
    return plain(f"CPU {environment.get('cpu') or 'unknown'}{threads}")


def date(row: Row) -> str:
    """When a row was measured, in ISO format."""
    return str(row["environment"].get("date"))


def spread_bounds(rate: float, spread: float | None) -> tuple[float, float]:
    """The range of a rate whose runs have that spread: half of it to each side, at least 0."""
    half = rate * (spread or 0.0) / 2
    return max(0.0, rate - half), rate + half


def number(value: float) -> str:
    """Three significant digits, as 467, 30.5 or 0.853."""
    if value <= 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{min(digits, 6)}f}"


def plain(value: Any) -> str:
    """A text from a file as one printable line."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _checked_row(row: Any, where: str) -> Row:
    """The row with printable texts; InputError if it is none, or a figure is not a number."""
    if not isinstance(row, dict) or not {"recipe", "model", "batch_size", "status"} <= row.keys():
        raise InputError(f"{where} is no row of samfast bench; {HINT}")
    if not isinstance(row.get("environment"), dict):
        raise InputError(f"{where}: has no environment, so its origin is unknown; {HINT}")
    size = row["batch_size"]
    if type(size) is not int or size < 1:
        raise InputError(
            f"{where}: batch_size is {plain(size)!r}, not a whole number of at least 1"
        )
    if isinstance(row.get("agreement"), dict):
        row = {**row, "mask_iou": row["agreement"].get("mask_iou")}
    for key in FIGURES:
        value = row.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 <= value < math.inf):
            raise InputError(
                f"{where}: {key} is {plain(value)!r}, not a number of at least 0; measure it again"
            )
    texts = {k: plain(row.get(k, "unknown")) for k in ("recipe", "model", "weights", "status")}
    return {**dict.fromkeys(FIGURES), **row, **texts}
