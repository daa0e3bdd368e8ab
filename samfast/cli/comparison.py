"""`samfast bench --compare OLD.json NEW.json`: what got better or worse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samfast.cli.console import CommandLineError, Console, columns, write_json

SHORT = {
    "encoder_images_per_second": "encoder images/s",
    "images_per_second": "images/s",
    "peak_memory_bytes": "peak MiB",
    "miou": "miou",
    "mask_iou": "mask iou",
    "max_relative_error": "max error",
}

SHOWN: dict[str, Callable[[float], str]] = {
    "peak_memory_bytes": lambda value: f"{value / 2**20:.0f}",
    "max_relative_error": "{:.1e}".format,
    "miou": "{:.4f}".format,
    "mask_iou": "{:.4f}".format,
}
"""How values are written; others with four digits."""


def run(old: str, new: str, json: str | None, console: Console) -> int:
    """Compare two files; 1 if something fell, else 0. CommandLineError if they have no row in
    common.
    """
    from samfast.bench import results
    from samfast.bench.compare import compare

    told = {"old": old, "new": new, **compare(results.read(old), results.read(new))}
    if json is not None:
        write_json(told, json)
    if json != "-":
        for line in describe(told):
            console.result(line)
    if not told["rows"]:
        raise CommandLineError(
            f"nothing was compared: no row of {old} is of the same model, weights, recipe, batch "
            "size and GPU as one "
            f"of {new} (measure the same)"
        )
    return int(told["fell"])


def describe(told: dict[str, Any]) -> list[str]:
    """A comparison for people, a line each."""
    lines = [
        f"{key}: {', '.join(pair['old'])} in {told['old']}, {', '.join(pair['new'])} in "
        f"{told['new']}"
        for key, pair in told["differences"].items()
    ]
    if told["rows"]:
        shown = [name for name in SHORT if any(name in row["measures"] for row in told["rows"])]
        headings = ["recipe", "batch size", "model", *(SHORT[name] for name in shown), "spread", ""]
        lines += columns(headings, [_cells(row, shown) for row in told["rows"]])
    for side in ("old", "new"):
        lines += [f"only in {told[side]}: {_name(row)}" for row in told[f"only_{side}"]]
    fallen = [
        f"{_name(row)}: {', '.join(SHORT.get(n, n) for n in row['fell'])}"
        for row in told["rows"]
        if row["fell"]
    ]
    return [*lines, *(f"fell: {each}" for each in fallen)] if fallen else [*lines, "nothing fell"]


def _cells(row: dict[str, Any], shown: list[str]) -> list[str]:
    cells = [_measure(name, row["measures"].get(name), name in row["missing"]) for name in shown]
    spreads = []
    for side in ("old", "new"):
        value, is_ok = row[f"{side}_spread"], row[f"{side}_status"] == "ok"
        spreads.append(f"{value:.0%}" if value is not None else "one run" if is_ok else "-")
    spread = ", ".join(spreads)
    words = ""
    if row["fell"]:
        words = "fell"
    if row["old_status"] != "ok" or row["new_status"] != "ok":
        words = f"{words} was {row['old_status']}, is {row['new_status']}".strip()
    return [row["recipe"], str(row["batch_size"]), row["model"], *cells, spread, words]


def _measure(name: str, values: dict[str, Any] | None, missing: bool) -> str:
    if values is None:
        return "not measured now" if missing else "-"
    show = SHOWN.get(name, "{:.4g}".format)
    old, new = show(values["old"]), show(values["new"])
    ratio = "" if values["ratio"] is None else f" x{values['ratio']:.3f}"
    return f"{old} -> {new}{ratio}{' !' if values['fell'] else ''}"


def _name(row: dict[str, Any]) -> str:
    return (
        f"{row['recipe']}, batch {row['batch_size']}, {row['model']}, {row['weights']} "
        f"weights, {row['place']}"
    )
