"""`samfast report`: each chart as SVG and PNG, and one HTML page of charts and tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from samfast.atomic_files import atomic_write
from samfast.bench import charts
from samfast.bench.report_groups import Group, grouped
from samfast.bench.results import Row, has_figures, number

PAGE = "report.html"

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>samfast: what was measured</title>
<style>
body {{ margin: 0 auto; padding: 1rem; max-width: 76rem; font: 1rem/1.45 system-ui, sans-serif }}
h2 {{ margin-top: 2.5rem }} img {{ max-width: 100%; vertical-align: top }}
.stamp, caption {{ color: #59626c; font-size: .85rem; text-align: left }}
table {{ border-collapse: collapse; font-size: .85rem; margin: 1rem 0 }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid #dfe3e8; text-align: left }}
</style>
</head>
<body>
<h1>samfast: what was measured</h1>
<p>Drawn from the files of <code>samfast bench</code>. Bars begin at zero. Rows of different models,
weights, devices, versions or commits stand apart. A rival's largest error is of its embeddings
alone, a recipe's of its logits and scores too.</p>
{body}
</body>
</html>
"""

COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "recipe": ("recipe", str),
    "batch": ("batch_size", str),
    "encoder, images/s": ("encoder_images_per_second", number),
    "to masks, images/s": ("images_per_second", number),
    "spread": ("spread", "{:.0%}".format),
    "peak GiB": ("peak_memory_bytes", lambda value: number(value / 2**30)),
    "first call, s": ("first_call_seconds", number),
    "largest error": ("max_relative_error", "{:.1e}".format),
    "mask IoU with fp32": ("mask_iou", "{:.4f}".format),
    "mIoU": ("miou", "{:.4f}".format),
    "of the ceiling": ("share_of_ceiling", "{:.0%}".format),
}
"""Headings of the table of figures, with the rows' keys and how their values are written."""


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the report of some rows into a folder that exists; the files, the page first.

    Raises MissingExtraError without matplotlib, OutputError if a file cannot be written.
    """
    charts.require()
    body: list[str] = []
    written: list[Path] = []
    groups = grouped(rows)
    for index, group in enumerate(groups):
        body += [f"<h2>{escape(group.title)}</h2>", f'<p class="stamp">{escape(group.stamp)}</p>']
        for kind, figure, alt in _figures(group):
            name = _file_name(group, kind, index if len(groups) > 1 else None)
            for ending, content in (
                ("svg", charts.svg(figure, name).encode()),
                ("png", charts.png(figure)),
            ):
                written.append(folder / f"{name}.{ending}")
                atomic_write(written[-1], content)
            body.append(f'<img src="{escape(name)}.svg" alt="{escape(alt)}">')
        body += _tables(group)
    atomic_write(folder / PAGE, TEMPLATE.format(body="\n".join(body)).encode())
    return [folder / PAGE, *written]


def _figures(group: Group) -> Iterator[tuple[str, Any, str]]:
    """Each chart of a group: its kind, the figure, and what it shows in words."""
    for size in group.batch_sizes:
        for kind, figure, key, scale in (
            ("speed", charts.speed(group, size), "encoder_images_per_second", 1.0),
            ("memory", charts.memory(group, size), "peak_memory_bytes", 2.0**-30),
            ("ceiling", charts.ceiling(group, size), "share_of_ceiling", 100.0),
        ):
            if figure is not None:
                values = ", ".join(
                    f"{row['recipe']} {number(row[key] * scale)}"
                    for row in group.measured(size)
                    if row[key] is not None
                )
                yield f"batch-{size}-{kind}", figure, f"{kind}, batch {size}: {values}"
    curves = charts.batch_sizes(group)
    if curves is not None:
        yield "by-batch-size", curves, "The encoder's images a second by batch size: see the table"


def _tables(group: Group) -> Iterator[str]:
    shown = [row for row in group.rows if has_figures(row)]
    if shown:
        rows = [[_cell(row[key], show) for key, show in COLUMNS.values()] for row in shown]
        yield _table("All figures", list(COLUMNS), rows)
    reasons = [[r["recipe"], str(r["batch_size"]), r["status"]] for r in group.unmeasured()]
    if reasons:
        yield _table("No figures, and why", ("recipe", "batch", "status"), reasons)


def _file_name(group: Group, kind: str, index: int | None) -> str:
    """A chart's file name without its ending; the index tells groups apart."""
    row = group.rows[0]
    device, commit = row["environment"].get("gpu") or "cpu", row["environment"].get("commit")
    parts = [str(row["model"]), str(device), str(commit)[:7], kind]
    name = "-".join(re.sub(r"[^a-z0-9_]+", "-", part.lower()).strip("-")[:40] for part in parts)
    return name if index is None else f"{index + 1}-{name}"


def _cell(value: Any, show: Callable[[Any], str]) -> str:
    return "–" if value is None else show(value)


def _table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{escape(caption)}</caption>\n<tr>{head}</tr>\n{body}\n</table>"
