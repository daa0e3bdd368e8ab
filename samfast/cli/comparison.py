"""`samfast bench --compare OLD.json NEW.json`: what got better or worse."""

from __future__ import annotations

from typing import Any

from samfast.cli.console import CommandLineError, Console, columns, write_json
from samfast.errors import InputError

SHORT = {
    "encoder_images_per_second": "encoder images/s",
    "images_per_second": "images/s",
    "peak_memory_bytes": "peak MiB",
    "miou": "miou",
    "mask_iou": "mask iou",
    "max_relative_error": "max error",
}


def run(old: str, new: str, json: str | None, console: Console) -> int:
    """Compare two files; 1 if something fell, else 0. CommandLineError if they have no row in
    common.
    """
    from samfast.bench import results
    from samfast.bench.compare import compare

    rows = []
    for path in (old, new):
        loaded = results.read(path).rows
        if not loaded:
            raise InputError(
                f"{path}: accuracies only, no rows of samfast bench; name a file that has some"
            )
        rows.append(loaded)
    told = {"old": old, "new": new, **compare(*rows)}
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
        f"{key}: {_values(pair['old'])} in {told['old']}, {_values(pair['new'])} in {told['new']}"
        for key, pair in told["differences"].items()
    ]
    for side in ("old", "new"):
        lines += [
            f"several rows in {told[side]}, the newest counts: {_name(r)}"
            for r in told["repeated"][side]
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
    spreads = [row["old_spread"], row["new_spread"]]
    spread = " ".join("-" if value is None else f"{100 * value:.0f}%" for value in spreads)
    words = ""
    if row["fell"]:
        words = "fell"
    if row["old_status"] != "ok" or row["new_status"] != "ok":
        words = f"{words} was {row['old_status']}, is {row['new_status']}".strip()
    return [row["recipe"], str(row["batch_size"]), row["model"], *cells, spread, words]


def _measure(name: str, values: dict[str, Any] | None, missing: bool) -> str:
    if values is None:
        return "not measured now" if missing else "-"
    scale = 2**-20 if name == "peak_memory_bytes" else 1.0
    old, new = (_figure(name, scale * values[side]) for side in ("old", "new"))
    ratio = "" if values["ratio"] is None else f" x{values['ratio']:.3f}"
    return f"{old} -> {new}{ratio}{' !' if values['fell'] else ''}"


def _figure(name: str, value: float) -> str:
    if name == "max_relative_error":
        return f"{value:.1e}"
    return (
        f"{value:.4f}"
        if name in ("miou", "mask_iou")
        else f"{value:.0f}"
        if name == "peak_memory_bytes"
        else f"{value:.4g}"
    )


def _name(row: dict[str, Any]) -> str:
    return (
        f"{row['recipe']}, batch {row['batch_size']}, {row['model']}, {row['weights']} "
        f"weights, {row['place']}"
    )


def _values(values: list[Any]) -> str:
    return ", ".join(
        "unknown" if value is None else "none" if value == {} else str(value) for value in values
    )
