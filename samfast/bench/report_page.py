"""`samfast report`: each chart as SVG and PNG, and one HTML page of them and their rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from samfast.atomic_files import atomic_write
from samfast.bench import charts
from samfast.bench.report_groups import Group, grouped
from samfast.bench.results import Row, number

PAGE = "report.html"

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>samfast: what was measured</title>
<style>
body {{ margin: 0 auto; padding: 1rem; max-width: 76rem; font: 1rem/1.45 system-ui, sans-serif }}
img {{ max-width: 100%; vertical-align: top }} pre {{ overflow-x: auto }}
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


def write(
    rows: Sequence[Row], folder: Path, table: Callable[[Sequence[Row]], list[str]]
) -> list[Path]:
    """Write the report of some rows into a folder that exists; the files, the page first.

    table  rows as lines of text

    Raises MissingExtraError without matplotlib, OutputError if a file cannot be written.
    """
    charts.require()
    body: list[str] = []
    written: list[Path] = []
    groups = grouped(rows)
    for index, group in enumerate(groups):
        body += [f"<h2>{escape(group.title)}</h2>", f"<p>{escape(group.stamp)}</p>"]
        for kind, figure, alt in _figures(group):
            name = _file_name(group, kind, index if len(groups) > 1 else None)
            for ending, content in (
                ("svg", charts.svg(figure, name).encode()),
                ("png", charts.png(figure)),
            ):
                written.append(folder / f"{name}.{ending}")
                atomic_write(written[-1], content)
            body.append(f'<img src="{escape(name)}.svg" alt="{escape(alt)}">')
        lines = "\n".join(table(group.rows))
        body.append(f"<pre>{escape(lines)}</pre>")
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


def _file_name(group: Group, kind: str, index: int | None) -> str:
    """A chart's file name without its ending; the index tells groups apart."""
    row = group.rows[0]
    device, commit = row["environment"].get("gpu") or "cpu", row["environment"].get("commit")
    parts = [str(row["model"]), str(device), str(commit)[:7], kind]
    name = "-".join(re.sub(r"[^a-z0-9_]+", "-", part.lower()).strip("-")[:40] for part in parts)
    return name if index is None else f"{index + 1}-{name}"
