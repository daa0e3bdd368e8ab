"""Figures in docs/performance.md, filled in from the committed results by make_tables.py.

The document says where a figure comes from in comments, which a reader does not see. Everything
between a comment and the next `<!--/-->` is generated:

    <!--= h200_vit_b.json fused 8 encoder_images_per_second -->467<!--/-->
        one figure: file, recipe, batch size, key of the row (a.b for a key within)

Tables end with a line <!--/-->:

    <!--# rows h200_vit_b.json 8 fp32 bf16 -->
        speed, memory and error, a row for each recipe
    <!--# step h200_vit_b.json 8 fp32 bf16 -->
        the same of two recipes, and the second one against the first
    <!--# verdicts h200_vit_b.json 8 fp32>bf16 -->
        a row for each step: the ratio, and whether it exceeds the spread
    <!--# sizes h200_vit_b.json 1,8,32 fused fp8 -->
        the encoder's images a second by batch size
    <!--# kernels h200_vit_b.json 8 fused fp8 -->
        the encoder's time by class of kernel
    <!--# scores a.json b.json -->
        mean IoU, a row for each result of `samfast eval`, or of pruned_accuracy.py
    <!--# everything h200_automatic.json -->
        automatic masks: speed and memory, rows of automatic_gpu.py
    <!--# agreement h200_automatic_masks.json -->
        automatic masks compared with the original's

A row that is absent reads "not measured yet". An unknown recipe, key or file is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samfast.bench.bench_job import Job, blank
from samfast.bench.kernel_table import CLASSES
from samfast.bench.results import Row, is_rival, number, place, read, spread_bounds
from samfast.bench.rivals import RIVALS
from samfast.recipes import RECIPES

FIGURE = re.compile(r"<!--= ([^>]*?) -->(.*?)<!--/-->", re.DOTALL)
TABLE = re.compile(r"^<!--# ((?:[^-]|-(?!->))*?) -->\n(.*?)^<!--/-->$", re.DOTALL | re.MULTILINE)

UNKNOWN = "not measured yet"
NONE = "–"

COLUMNS = (
    ("encoder, images/s", "encoder_images_per_second"),
    ("to masks, images/s", "images_per_second"),
    ("peak GiB", "peak_memory_bytes"),
    ("embeddings' error", "relative_errors.features"),
    ("first call, s", "first_call_seconds"),
    ("of the ceiling", "share_of_ceiling"),
)
"""What tables of recipes show."""

KEYS = frozenset(blank(Job("fp32", 1, "vit_b", None, "", "cpu", "", (), ()), "ok"))
"""The keys that rows have."""


def fill(text: str, results: Path) -> str:
    """The document with its figures from the files in `results`; ValueError for a bad marker."""
    if len(re.findall(r"<!--[=#]", text)) != len(FIGURE.findall(text)) + len(TABLE.findall(text)):
        raise ValueError(
            "a marker is not closed by <!--/-->, or a table's is not on a line of its own"
        )
    if re.search(r"^\s*<!--=", text, re.MULTILINE):
        raise ValueError(
            "a line begins with a figure: Markdown would take what follows it for HTML"
        )
    text = FIGURE.sub(
        lambda match: f"<!--= {match[1]} -->{_figure(match[1], results)}<!--/-->", text
    )
    return TABLE.sub(
        lambda match: f"<!--# {match[1]} -->\n{_table(match[1], results)}<!--/-->", text
    )


def without_figures(text: str) -> str:
    """The document without all that is generated."""
    return TABLE.sub("", FIGURE.sub("", text))


def _figure(words: str, results: Path) -> str:
    parts = words.split()
    if len(parts) != 4:
        raise ValueError(f"{words!r}: a figure is FILE RECIPE BATCH KEY")
    file, recipe, batch_size, key = parts
    first = key.partition(".")[0]
    if first not in KEYS:
        raise ValueError(f"{words!r}: no row has a key {first!r}")
    row = _row(results / file, recipe, int(batch_size))
    if row is None or row["status"] != "ok":
        return UNKNOWN
    value = _value(row, key)
    return UNKNOWN if value is None else cell(key, value)


def _table(words: str, results: Path) -> str:
    kind, *parts = words.split()
    if kind not in TABLES or not parts:
        raise ValueError(f"{words!r}: there are tables of {', '.join(TABLES)}")
    headings, rows = TABLES[kind](results, parts)
    alignment = ["---", *["---:"] * (len(headings) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, alignment, *rows))


Table = tuple[Sequence[str], list[list[str]]]


def _rows(results: Path, parts: Sequence[str]) -> Table:
    file, batch_size, *recipes = parts
    rows = [(recipe, _row(results / file, recipe, int(batch_size))) for recipe in recipes]
    return _headings(batch_size), [_line(recipe, row) for recipe, row in rows]


def _step(results: Path, parts: Sequence[str]) -> Table:
    headings, lines = _rows(results, parts)
    file, batch_size, *recipes = parts
    if len(recipes) != 2:
        raise ValueError(f"{' '.join(parts)}: a step is from one recipe to another")
    old, new = (_row(results / file, recipe, int(batch_size)) for recipe in recipes)
    last = [f"ratio{_unlike(old, new)}"]
    for _, key in COLUMNS:
        if key == "share_of_ceiling" or _lacks(old, key) or _lacks(new, key):
            last.append(NONE)
            continue
        assert old is not None and new is not None
        if key == "first_call_seconds" and old.get("cache") != new.get("cache"):
            last.append(NONE)  # one of them found compiled code and the other did not
            continue
        chance = CHANCE if key in SPEEDS and not _tells(key, old, new) else ""
        last.append(f"× {number(_value(new, key) / _value(old, key))}{chance}")
    return headings, [*lines, last]


def _verdicts(results: Path, parts: Sequence[str]) -> Table:
    file, batch_size, *steps = parts
    lines = []
    for step in steps:
        names = step.split(">")
        if len(names) != 2:
            raise ValueError(f"{step!r}: a step is OLD>NEW")
        old, new = (_row(results / file, name, int(batch_size)) for name in names)
        line = [f"{_name(names[1])} instead of {_name(names[0])}{_unlike(old, new)}"]
        for key in SPEEDS:
            if _lacks(old, key) or _lacks(new, key):
                line.append(UNKNOWN)
                continue
            assert old is not None and new is not None
            verdict = "faster" if new[key] > old[key] else "slower"
            chance = "" if _tells(key, old, new) else CHANCE
            line.append(f"× {number(new[key] / old[key])}, {verdict}{chance}")
        lines.append(line)
    return (f"step, batch {batch_size}", "encoder", "encoder, prompts, masks"), lines


def _sizes(results: Path, parts: Sequence[str]) -> Table:
    file, listed, *recipes = parts
    sizes = [int(size) for size in listed.split(",")]
    key = "encoder_images_per_second"
    lines = []
    for recipe in recipes:
        rows = [_row(results / file, recipe, size) for size in sizes]
        lines.append(
            [_name(recipe), *(UNKNOWN if row is None else _cell(row, key) for row in rows)]
        )
    return ("encoder, images/s", *(f"batch {size}" for size in sizes)), lines


def _kernels(results: Path, parts: Sequence[str]) -> Table:
    file, batch_size, *recipes = parts
    lines = []
    for recipe in recipes:
        row = _row(results / file, recipe, int(batch_size))
        classes = None if row is None else (row.get("kernels") or {}).get("classes")
        shares = [UNKNOWN] * len(CLASSES)
        if classes is not None:
            shares = [
                f"{classes[kind]['ms']:.2f} ms" if kind in classes else NONE for kind in CLASSES
            ]
        lines.append([_name(recipe), *shares])
    return (f"encoder, batch {batch_size}", *CLASSES), lines


def _scores(results: Path, parts: Sequence[str]) -> Table:
    lines = []
    scores: list[dict[str, Any]] = []
    for file in parts:
        loaded = json.loads((results / file).read_text(encoding="utf-8"))
        # A list is of pruned_accuracy.py, whose rows have a score for each rule for clicks.
        scores += [row["edt"] for row in loaded] if isinstance(loaded, list) else [loaded]
    for score in scores:
        means = [(score.get(prompt) or {}).get("miou") for prompt in ("point", "box")]
        shown = [NONE if mean is None else f"{mean:.4f}" for mean in means]
        counts = [str(score["images"]), str(score["masks"])]
        lines.append([_name(score["recipe"]), score["model"], *counts, *shown, place(score)])
    return ("recipe", "model", "images", "masks", "click, mIoU", "box, mIoU", "on"), lines


def _everything(results: Path, parts: Sequence[str]) -> Table:
    rows = [row for row in _automatic(results, parts) if "seconds_a_photo" in row]
    rivals = [row["what"] for row in rows if is_rival(row["what"])]
    lines = []
    for row in rows:
        stream = row.get("stream", {})
        ratios = [f"× {number(row['ratio_to'][rival])}" for rival in rivals]
        lines.append(
            [
                _name(row["what"]),
                number(row["seconds_a_photo"]),
                number(stream["seconds_a_photo"]) if stream else NONE,
                *ratios,
                cell("peak_memory_bytes", row["peak_memory_bytes"]),
                cell("peak_memory_bytes", stream["peak_memory_bytes"]) if stream else NONE,
                number(row["masks_a_photo"]),
            ]
        )
    against = (f"against {_name(rival)}" for rival in rivals)
    return (
        "",
        "s a photo",
        "in a stream",
        *against,
        "peak GiB",
        "in a stream",
        "masks a photo",
    ), lines


def _agreement(results: Path, parts: Sequence[str]) -> Table:
    lines = []
    rows = _automatic(results, parts)
    for row in rows:
        if "agreement" not in row or is_rival(row["what"]):
            continue
        agreement = row["agreement"]
        lines.append(
            [
                _name(row["what"]),
                f"{agreement['masks']} of {agreement['original_masks']}",
                f"{agreement['photos_of_equal_count']} of {agreement['photos']}",
                f"{agreement['matched_iou']:.7f}",
            ]
        )
    limits = " / ".join(str(value) for value in rows[0]["thresholds"].values())
    return (
        limits,
        "masks, of the original's",
        "photos with as many",
        "mean IoU with the original's",
    ), lines


def _automatic(results: Path, parts: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of automatic_gpu.py that have figures."""
    (file,) = parts
    rows: list[dict[str, Any]] = json.loads((results / file).read_text(encoding="utf-8"))
    return [row for row in rows if row["status"] == "ok"]


TABLES: dict[str, Callable[[Path, Sequence[str]], Table]] = {
    "rows": _rows,
    "step": _step,
    "verdicts": _verdicts,
    "sizes": _sizes,
    "kernels": _kernels,
    "scores": _scores,
    "everything": _everything,
    "agreement": _agreement,
}

SPEEDS = ("encoder_images_per_second", "images_per_second")
CHANCE = " (within the spread)"


def _row(path: Path, recipe: str, batch_size: int) -> Row | None:
    """The row of a recipe and batch size, the newest of several; None if there is none."""
    if recipe not in RECIPES and recipe not in RIVALS:
        raise ValueError(f"{recipe!r} is neither a recipe nor a rival")
    rows = [r for r in read(path) if (r["recipe"], r["batch_size"]) == (recipe, batch_size)]
    if len({(row["model"], row["weights"], place(row)) for row in rows}) > 1:
        raise ValueError(
            f"{path.name}: {recipe} at batch {batch_size} is there of several models or devices"
        )
    return max(rows, key=lambda row: str(row["environment"].get("date")), default=None)


def _headings(batch_size: str) -> Sequence[str]:
    return (f"batch {batch_size}", *(heading for heading, _ in COLUMNS))


def _line(recipe: str, row: Row | None) -> list[str]:
    if row is None:
        return [_name(recipe), UNKNOWN, *[NONE] * (len(COLUMNS) - 1)]
    return [_name(recipe), *(_cell(row, key) for _, key in COLUMNS)]


def _cell(row: Row, key: str) -> str:
    if row["status"] != "ok":
        return row["status"].partition(":")[0] if key == SPEEDS[0] else NONE
    value = _value(row, key)
    return NONE if value is None else cell(key, value)


def cell(key: str, value: Any) -> str:
    """A figure in its document's unit: GiB for bytes, ms for a call, per cent for shares."""
    if not isinstance(value, int | float):
        return str(value)
    if key.endswith((".median", ".p99")):
        return f"{1e3 * value:.1f} ms"
    if key.endswith("_bytes"):
        return number(value / 2**30)
    if key.endswith(("share", "share_of_ceiling", "spread")):
        return f"{100 * value:.0f} %"
    return f"{value:.1e}" if "error" in key else number(value)


def _lacks(row: Row | None, key: str) -> bool:
    return row is None or row["status"] != "ok" or not _value(row, key)


def _value(row: Row, key: str) -> Any:
    """A row's value of a key, a.b for a key within; None where there is none."""
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _unlike(old: Row | None, new: Row | None) -> str:
    """A note on two rows of different commits or versions."""
    if old is None or new is None:
        return ""
    names = [
        name
        for name in ("commit", "torch")
        if old["environment"].get(name) != new["environment"].get(name)
    ]
    return f" (another {' and '.join(names)})" if names else ""


def _tells(key: str, old: Row, new: Row) -> bool:
    """Whether two speeds differ by more than the spread of their runs, half of it to each side."""
    (low, high), (lowest, highest) = (spread_bounds(row[key], row["spread"]) for row in (old, new))
    return high < lowest or highest < low


def _name(recipe: str) -> str:
    return recipe.removeprefix("rival:") if is_rival(recipe) else f"`{recipe}`"
