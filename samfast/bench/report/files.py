"""The files of a report: each chart as SVG and PNG, and the page of them all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samfast.atomic_files import atomic_write
from samfast.bench.report import charts, pictures
from samfast.bench.report.groups import Group, grouped
from samfast.bench.report.page import Chart, page, words
from samfast.bench.report.scores import beside, of_rows
from samfast.bench.results import Results, Row

PAGE = "report.html"


def write(results: Results, folder: Path) -> list[Path]:
    """Write the report of some results into a folder that is there; the files, the page first.

    Raises MissingExtraError without matplotlib, OutputError if a file cannot be written.
    """
    charts.require()
    parts, written = [], []
    groups = grouped(results.rows)
    for index, group in enumerate(groups):
        drawn = []
        others = of_rows(row for row in results.rows if row not in group.rows)
        for kind, figure, text in _charts(group, (*results.scores, *others)):
            name = _name(group, kind, index if len(groups) > 1 else None)
            svg = pictures.svg(figure, name)
            for path, data in (
                (f"{name}.svg", svg.encode()),
                (f"{name}.png", pictures.png(figure)),
            ):
                atomic_write(folder / path, data)
                written.append(folder / path)
            drawn.append(Chart(name, svg, text))
        parts.append((group, drawn))
    atomic_write(folder / PAGE, page(parts, results.scores))
    return [folder / PAGE, *written]


def _charts(group: Group, scores: tuple[Row, ...]) -> Iterator[tuple[str, Any, str]]:
    """Each chart of a group: what it is called, the figure, and what it shows in words."""
    accuracy = beside(group, scores)
    for size in group.batch_sizes:
        rows = group.measured(size)
        speed = "encoder_images_per_second"
        found = (
            ("speed", charts.speed(group, size, accuracy), "Encoder, images a second", speed, 1.0),
            (
                "memory",
                charts.memory(group, size),
                "Peak memory in GiB",
                "peak_memory_bytes",
                2.0**-30,
            ),
            (
                "ceiling",
                charts.ceiling(group, size),
                "Percent of the ceiling",
                "share_of_ceiling",
                100.0,
            ),
        )
        for kind, figure, title, key, scale in found:
            if figure is not None:
                text = words(f"{title}, batch {size}", group, rows, key, scale)
                yield f"batch-{size}-{kind}", figure, text
    curves = charts.batch_sizes(group)
    if curves is not None:
        yield (
            "by-batch-size",
            curves,
            f"Encoder, images a second by batch size; {group.title}: see the table",
        )


def _name(group: Group, kind: str, index: int | None) -> str:
    """A file's name without its ending; index tells it from like ones of other groups."""
    row = group.rows[0]
    device = row["environment"].get("gpu") or "cpu"
    parts = [str(row["model"]), str(device), str(row["environment"].get("commit"))[:7], kind]
    name = "-".join(re.sub(r"[^a-z0-9_]+", "-", part.lower()).strip("-")[:40] for part in parts)
    return name if index is None else f"{index + 1}-{name}"
