"""The charts, by matplotlib: a bar from zero for each recipe, with whiskers for the spread."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from samfast.bench.report_groups import Group, labels
from samfast.bench.results import Row, is_rival, number, spread_bounds
from samfast.errors import MissingExtraError

WIDTH = 6.4
"""Inches."""

COLOURS = {
    "encoder": "#0b6e4f",
    "encoder, prompts, masks": "#7fc3a5",
    "rival: encoder": "#a4501f",
    "rival: encoder, prompts, masks": "#e0ac84",
}
ACCURACY = "#2a4d9b"

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, which can be searched and read aloud
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dfe3e8",
    "text.parse_math": False,  # a name may hold a dollar sign
}

SPREAD = "whiskers: spread of the timed runs (nine in ten of them), half to each side"
MEMORY = "the most in use during the timed calls, weights included; measured once, without a spread"
CEILING = (
    "the time that the encoder's matrix products alone would take at the rates measured on this "
    "device in the same run, each in the recipe's own number format, over the encoder's time"
)


def require() -> None:
    """MissingExtraError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "charts need matplotlib, which is not installed: pip install 'samfast[report]'"
        ) from error


def speed(group: Group, batch_size: int) -> Any:
    """Images a second, of the encoder and with prompts to masks; beside them mean IoU, if scored.

    returns  a matplotlib Figure; None if no row of that batch size has figures
    """
    rows = group.measured(batch_size)
    if not rows:
        return None
    with _style():
        figure = _figure(f"Images a second, batch {batch_size}", group, batch_size, [SPREAD], rows)
        if any(row["miou"] is not None for row in rows):
            axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
            _accuracy(beside, rows)
        else:
            axes = figure.subplots()
        encoder, whole = "encoder", "encoder, prompts, masks"
        _bars(axes, rows, "encoder_images_per_second", encoder, height=0.36, offset=-0.2)
        _bars(axes, rows, "images_per_second", whole, height=0.36, offset=0.2)
        _rows(axes, rows)
        axes.legend(loc="best", fontsize=6.5)
    return figure


def memory(group: Group, batch_size: int) -> Any:
    """Peak memory in GiB; None if no row of that batch size has a figure."""
    title = f"Peak memory, GiB, batch {batch_size}"
    return _one_bar_each(group, batch_size, "peak_memory_bytes", 2.0**-30, title, [MEMORY])


def ceiling(group: Group, batch_size: int) -> Any:
    """The share of what plain matrix products reach; None if no row has a figure."""
    title, notes = f"Share of the device's ceiling, %, batch {batch_size}", [CEILING, SPREAD]
    return _one_bar_each(group, batch_size, "share_of_ceiling", 100.0, title, notes, end=100.0)


def batch_sizes(group: Group) -> Any:
    """The encoder's images a second by batch size; None if nothing was measured at two of them."""
    curves: dict[str, list[Row]] = {}
    for row in (row for size in group.batch_sizes for row in group.measured(size)):
        if row["encoder_images_per_second"]:
            curves.setdefault(row["recipe"], []).append(row)
    curves = {name: rows for name, rows in curves.items() if len(set(_sizes(rows))) > 1}
    if not curves:
        return None
    shown = [rows[0] for rows in curves.values()]
    with _style():
        title = "Encoder, images a second by batch size"
        figure = _figure(title, group, None, [SPREAD], shown)
        axes = figure.subplots()
        for rows, name, mark in zip(curves.values(), labels(shown), "osD^vP*Xhd" * 9, strict=False):
            colour = COLOURS[_kind(rows[0], "encoder")]
            rates = [row["encoder_images_per_second"] for row in rows]
            bounds = [spread_bounds(rate, r["spread"]) for rate, r in zip(rates, rows, strict=True)]
            axes.plot(_sizes(rows), rates, f"{mark}-", color=colour, ms=4, label=name)
            axes.vlines(_sizes(rows), *zip(*bounds, strict=True), colors=colour, lw=0.8)
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.set_xticks(group.batch_sizes)
        axes.set_xlabel("images in a batch")
        axes.grid(axis="y")
        figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    return figure


def svg(figure: Any, name: str) -> str:
    """The figure as an SVG file, the same bytes each time."""
    out = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with _style(**{"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata=metadata)
    return out.getvalue()


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    with _style():
        figure.savefig(out, format="png", dpi=180, metadata={"Software": None})
    return out.getvalue()


def _one_bar_each(
    group: Group,
    batch_size: int,
    key: str,
    scale: float,
    title: str,
    notes: list[str],
    end: float | None = None,
) -> Any:
    """A bar for each row that has the figure; with `end` whiskers, and an axis to there."""
    rows = [row for row in group.measured(batch_size) if row[key] is not None]
    if not rows:
        return None
    with _style():
        figure = _figure(title, group, batch_size, notes, rows)
        axes = figure.subplots()
        _bars(axes, rows, key, "encoder", height=0.62, scale=scale, spread=end is not None)
        _rows(axes, rows)
        if end is not None:
            axes.set_xlim(right=max(end, axes.get_xlim()[1]))
    return figure


def _style(**more: Any) -> AbstractContextManager[None]:
    """These charts' settings of matplotlib within a block; the caller's return after it."""
    import matplotlib as mpl

    settings: Any = {**STYLE, **more}
    return mpl.rc_context(settings)


def _figure(
    title: str, group: Group, batch_size: int | None, notes: list[str], rows: Sequence[Row]
) -> Any:
    """A figure with its title above, and notes and the stamp below."""
    from matplotlib.figure import Figure

    missing = group.unmeasured(batch_size)
    if missing:
        listed = (f"{row['recipe']} ({row['status'].partition(':')[0]})" for row in missing)
        notes = [*notes, f"no figures: {', '.join(listed)}"]
    wrapped = "\n".join(textwrap.fill(note, 104) for note in [*notes, group.stamp])
    heading = "\n".join([title, *textwrap.wrap(group.title, 76)])
    height = 0.34 * max(len(rows), 7 if batch_size is None else 0)
    height += 0.9 + 0.14 * wrapped.count("\n") + 0.2 * heading.count("\n")
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(heading, x=0.01, ha="left", fontsize=10)
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=6.5, color="#59626c")
    return figure


def _bars(
    axes: Any,
    rows: Sequence[Row],
    key: str,
    name: str,
    *,
    height: float,
    offset: float = 0.0,
    scale: float = 1.0,
    spread: bool = True,
) -> None:
    """A figure's bars with their values and whiskers, labelled by kind for the legend."""
    drawn = [
        (i + offset, row[key] * scale, row) for i, row in enumerate(rows) if row[key] is not None
    ]
    for kind in dict.fromkeys(_kind(row, name) for _, _, row in drawn):
        chosen = [(y, value) for y, value, row in drawn if _kind(row, name) == kind]
        axes.barh(*zip(*chosen, strict=True), height, color=COLOURS[kind], label=kind)
    for y, value, row in drawn:
        low, high = spread_bounds(value, row["spread"]) if spread else (value, value)
        if spread:
            axes.hlines(y, low, high, colors="#1b1f24", lw=0.9)
        axes.annotate(
            number(value), (high, y), (3, 0), textcoords="offset points", va="center", fontsize=7
        )
    axes.margins(x=0.16)  # room for the figures; bars keep the left end at zero


def _rows(axes: Any, rows: Sequence[Row]) -> None:
    """The rows' names on the vertical axis, the first on top."""
    axes.set_yticks(range(len(rows)), [name[:40] for name in labels(rows)])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _accuracy(axes: Any, rows: Sequence[Row]) -> None:
    """A marker for each mean IoU, from 0 to 1."""
    axes.set_xlim(0, 1)
    axes.set_title("mIoU of a click", fontsize=7, color=ACCURACY)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    for index, row in enumerate(rows):
        miou = row["miou"]
        if miou is None:
            axes.annotate("not measured", (0.03, index), va="center", fontsize=6.5)
            continue
        axes.plot(miou, index, "o", ms=4.5, color=ACCURACY)
        side, offset = ("right", -5) if miou > 0.5 else ("left", 5)
        text, unit = f"{miou:.3f}".removeprefix("0"), "offset points"
        at = {"textcoords": unit, "va": "center", "ha": side}
        axes.annotate(text, (miou, index), (offset, 0), fontsize=6.5, **at)


def _kind(row: Row, name: str) -> str:
    return f"rival: {name}" if is_rival(row["recipe"]) else name


def _sizes(rows: Sequence[Row]) -> list[int]:
    return [row["batch_size"] for row in rows]
