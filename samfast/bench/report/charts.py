"""The charts, drawn by matplotlib: bars from zero, whiskers for the spread, a recipe a row."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from samfast.bench.report.colours import LIGHT
from samfast.bench.report.groups import Group, labels, stamp_words
from samfast.bench.report.pictures import styled
from samfast.bench.report.scores import Beside
from samfast.bench.results import Row, is_rival, spread_bounds
from samfast.errors import MissingExtraError

WIDTH = 5.8
"""Inches: narrow enough to be read on a phone."""

BAR = 0.36
"""Inches a row of bars."""

LETTER = 0.064
"""Inches that a letter of the labels takes, about."""

P = ParamSpec("P")

SPREAD = "whiskers: spread of the timed runs (nine in ten of them), half to each side"


def require() -> None:
    """MissingExtraError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "charts need matplotlib, which is not installed: pip install 'samfast[report]'"
        ) from error


def _drawn(draw: Callable[P, Any]) -> Callable[P, Any]:
    """The function under our settings of matplotlib: words are given theirs when they are made."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> Any:
        with styled():
            return draw(*args, **options)

    return drawn


@_drawn
def speed(group: Group, batch_size: int, beside: Beside) -> Any:
    """The waterfall of images a second: the encoder alone, and with prompts to masks; mean IoU
    beside it.

    returns  a matplotlib Figure; None if no row of that batch size has figures
    """
    rows = group.measured(batch_size)
    if not rows:
        return None
    scored = any(beside.of(row) is not None for row in rows)
    notes = [SPREAD, *([beside.words] if scored and beside.words else [])]
    frame = _Frame(
        rows,
        f"Images a second, batch {batch_size}",
        group,
        batch_size,
        notes,
        legend=0.58 if scored else 0.34,
    )
    axes = frame.axes(right=1.62 if scored else 0.2)
    ends = []
    for index, row in enumerate(rows):
        kind = _kind(row)
        pair = (
            ("encoder_images_per_second", kind, -0.2),
            ("images_per_second", f"{kind}_light", 0.2),
        )
        both = all(row[key] is not None for key, _, _ in pair)
        for key, colour, beside_it in pair:
            if row[key] is None:
                continue
            offset = beside_it if both else 0.0
            low, high = spread_bounds(row[key], row["spread"])
            axes.barh(index + offset, row[key], 0.36, color=LIGHT[colour])
            axes.plot(
                [low, high],
                [index + offset] * 2,
                color=LIGHT["ink"],
                linewidth=0.9,
                solid_capstyle="butt",
            )
            frame.write(axes, high, index + offset, number(row[key]))
            ends.append(high)
    axes.set_xlim(0, _end(ends))
    frame.legend(
        sorted({_kind(row) for row in rows}), whole=any(row["images_per_second"] for row in rows)
    )
    if scored:
        _accuracy(frame, rows, beside)
    return frame.figure


@_drawn
def memory(group: Group, batch_size: int) -> Any:
    """The waterfall of GiB in use at most; None if no row of that batch size has such a figure."""
    rows = [row for row in group.measured(batch_size) if row["peak_memory_bytes"] is not None]
    if not rows:
        return None
    notes = [
        "the most in use during the timed calls, weights included; measured once, so there is no "
        "spread"
    ]
    frame = _Frame(rows, f"Peak memory, GiB, batch {batch_size}", group, batch_size, notes)
    values = [row["peak_memory_bytes"] / 2**30 for row in rows]
    frame.bars(values, [number(value) for value in values], _end(values))
    return frame.figure


@_drawn
def ceiling(group: Group, batch_size: int) -> Any:
    """The share of what plain matrix products reach on the device; None if no row of that batch
    size has one.
    """
    rows = [row for row in group.measured(batch_size) if row["share_of_ceiling"] is not None]
    if not rows:
        return None
    notes = [
        "the time that the encoder's matrix products alone would take at the rates measured on "
        "this device in the "
        "same run, each in the recipe's own number format, over the time the encoder takes; "
        f"{SPREAD}"
    ]
    frame = _Frame(
        rows, f"Share of the device's ceiling, %, batch {batch_size}", group, batch_size, notes
    )
    values = [100 * row["share_of_ceiling"] for row in rows]
    bounds = [spread_bounds(value, row["spread"]) for value, row in zip(values, rows, strict=True)]
    frame.bars(
        values,
        [f"{value:.0f}" for value in values],
        max(100.0, _end([b[1] for b in bounds])),
        bounds,
    )
    return frame.figure


@_drawn
def batch_sizes(group: Group) -> Any:
    """Images a second of the encoder against the batch size, of what was measured at two of them;
    None if nothing.
    """
    measured: dict[str, list[Row]] = {}
    for row in group.rows:
        if row["status"] == "ok" and row["encoder_images_per_second"]:
            measured.setdefault(row["recipe"], []).append(row)
    curves = {
        name: sorted(rows, key=lambda row: int(row["batch_size"]))
        for name, rows in measured.items()
        if len({row["batch_size"] for row in rows}) > 1
    }
    if not curves:
        return None
    shown = [rows[0] for rows in curves.values()]
    title = "Encoder, images a second by batch size"
    frame = _Frame(shown, title, group, None, [SPREAD], legend=0.0, height=3.0, names=False)
    axes = frame.axes(right=2.1, left=0.5, bottom=0.42)
    tops, ends = [], []
    marks = "osD^vP*Xhd"
    for index, (rows, name) in enumerate(zip(curves.values(), labels(shown), strict=True)):
        colour = LIGHT[_kind(rows[0])]
        sizes = [row["batch_size"] for row in rows]
        rates = [row["encoder_images_per_second"] for row in rows]
        mark = marks[index % len(marks)]
        axes.plot(
            sizes,
            rates,
            color=colour,
            marker=mark,
            markersize=4,
            linewidth=1.2,
            label=_short(name, 32),
        )
        for row, rate in zip(rows, rates, strict=True):
            low, high = spread_bounds(rate, row["spread"])
            axes.plot([row["batch_size"]] * 2, [low, high], color=colour, linewidth=0.8)
            tops.append(high)
        ends += sizes
    axes.set_xlim(0, 1.06 * max(ends))
    axes.set_ylim(0, _end(tops, 1.06))
    axes.set_xticks(sorted(set(ends)))
    axes.set_yticks(_ticks(_end(tops, 1.06)))
    axes.set_xlabel("images in a batch", color=LIGHT["ink"], fontsize=8)
    axes.xaxis.grid(False)
    axes.yaxis.grid(True, color=LIGHT["grid"], linewidth=0.6)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        frameon=False,
        fontsize=7.5,
        labelcolor=LIGHT["ink"],
        borderaxespad=0.0,
    )
    return frame.figure


def number(value: float) -> str:
    """Three digits that count, as 467, 30.5 or 0.853."""
    if value <= 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{min(digits, 6)}f}"


class _Frame:
    """A figure: title above, a row of space a bar, notes and the stamp below. Sizes in inches."""

    def __init__(
        self,
        rows: Sequence[Row],
        title: str,
        group: Group,
        batch_size: int | None,
        notes: list[str],
        *,
        legend: float = 0.0,
        height: float | None = None,
        names: bool = True,
    ) -> None:
        from matplotlib.figure import Figure

        self._rows = rows
        self.names = [_short(name, 36) for name in labels(list(rows))]
        self._left = 0.2 + LETTER * max(map(len, self.names)) if names else 0.55
        missing = [row for row in group.without() if batch_size in (None, row["batch_size"])]
        stamp = [stamp_words([row["environment"] for row in rows])]
        if missing:
            listed = ", ".join(
                f"{row['recipe']} ({row['status'].partition(':')[0]})" for row in missing
            )
            notes = [*notes, f"no figures: {listed}"]
        wrapped = [line for note in [*notes, *stamp] for line in _wrapped(note)]
        heading = textwrap.wrap(group.title, 78)
        self._top = 0.36 + 0.16 * len(heading) + legend
        self._bottom = 0.32 + 0.125 * len(wrapped)
        self._plot = height or BAR * len(rows) + 0.1
        self._height = self._top + self._plot + self._bottom
        self._legend = legend
        self.figure = Figure(figsize=(WIDTH, self._height), facecolor=LIGHT["paper"])
        self._say(0.08, 0.08, title, 11, "ink", weight="bold")
        for index, line in enumerate(heading):
            self._say(0.08, 0.29 + 0.16 * index, line, 8.5, "muted")
        for index, line in enumerate(wrapped):
            self._say(
                0.08, self._height - 0.06 - 0.125 * (len(wrapped) - index), line, 6.5, "muted"
            )

    def axes(self, *, right: float, left: float | None = None, bottom: float = 0.0) -> Any:
        """The main axes, `right` inches short of the right edge; their rows have the recipes'
        names.
        """
        start = self._left if left is None else left
        axes = self.beside(start, WIDTH - start - right, bottom)
        if left is None:
            axes.set_yticks(range(len(self.names)), self.names)
        return axes

    def beside(self, left: float, width: float, bottom: float = 0.0) -> Any:
        """Axes of the same rows at another place."""
        low = self._bottom + bottom
        box = (
            left / WIDTH,
            low / self._height,
            width / WIDTH,
            (self._plot - bottom) / self._height,
        )
        axes = self.figure.add_axes(box)
        axes.set_facecolor(LIGHT["paper"])
        axes.set_ylim(len(self.names) - 0.5, -0.5)
        axes.tick_params(length=0, labelsize=8, labelcolor=LIGHT["ink"])
        for side, spine in axes.spines.items():
            spine.set_visible(side == "left")
            spine.set_color(LIGHT["muted"])
        axes.set_axisbelow(True)
        axes.xaxis.grid(True, color=LIGHT["grid"], linewidth=0.6)
        return axes

    def bars(
        self,
        values: list[float],
        words: list[str],
        end: float,
        bounds: list[tuple[float, float]] | None = None,
    ) -> None:
        """One bar a row."""
        axes = self.axes(right=0.2)
        for index, (value, word) in enumerate(zip(values, words, strict=True)):
            axes.barh(index, value, 0.62, color=LIGHT[_kind(self._rows[index])])
            high = value
            if bounds is not None:
                low, high = bounds[index]
                axes.plot(
                    [low, high],
                    [index] * 2,
                    color=LIGHT["ink"],
                    linewidth=0.9,
                    solid_capstyle="butt",
                )
            self.write(axes, high, index, word)
        axes.set_xlim(0, end)

    def write(self, axes: Any, x: float, y: float, word: str) -> None:
        """A bar's figure, right of it."""
        axes.annotate(
            word,
            (x, y),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=LIGHT["ink"],
        )

    def legend(self, kinds: list[str], *, whole: bool) -> None:
        """Small squares and words in a line under the heading."""
        from matplotlib.patches import Rectangle

        entries = [(kind, f"{'rival: ' if kind == 'rival' else ''}encoder") for kind in kinds]
        if whole:
            entries += [(f"{kind}_light", "with prompts, to masks") for kind in kinds]
            entries = sorted(
                entries, key=lambda entry: kinds.index(entry[0].removesuffix("_light"))
            )
        x, y = 0.1, self._top - self._legend + 0.1
        for colour, word in entries:
            size = 0.1 / WIDTH, 0.1 / self._height
            corner = x / WIDTH, 1 - (y + 0.1) / self._height
            square = Rectangle(
                corner, *size, transform=self.figure.transFigure, color=LIGHT[colour]
            )
            self.figure.add_artist(square)
            self._say(x + 0.14, y - 0.01, word, 7, "ink")
            x += 0.32 + 0.054 * len(word)

    def _say(self, x: float, y: float, text: str, size: float, colour: str, **options: Any) -> None:
        place = x / WIDTH, 1 - y / self._height
        self.figure.text(*place, text, fontsize=size, color=LIGHT[colour], va="top", **options)


def _accuracy(frame: _Frame, rows: Sequence[Row], beside: Beside) -> None:
    """A dot a mean IoU, from 0 to 1: filled for the weights that were timed, hollow for others."""
    axes = frame.beside(WIDTH - 1.45, 1.1)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.set_yticks([])
    axes.set_title("mIoU", fontsize=8, color=LIGHT["ink"], pad=13)
    kinds = set()
    for index, row in enumerate(rows):
        score = beside.of(row)
        if score is None:
            axes.annotate(
                "not measured", (0.03, index), va="center", fontsize=6.5, color=LIGHT["muted"]
            )
            continue
        for value, mark, offset, prompt in (
            (score.box, "s", -0.2, "box"),
            (score.point, "o", 0.2, "click"),
        ):
            if value is None:
                continue
            kinds.add(prompt)
            face = LIGHT["accuracy"] if score.own else LIGHT["paper"]
            axes.plot(
                value,
                index + offset,
                mark,
                markersize=4.5,
                color=LIGHT["accuracy"],
                markerfacecolor=face,
            )
            words = {"fontsize": 6.5, "va": "center", "color": LIGHT["ink"]}
            left = value > 0.5
            axes.annotate(
                f"{value:.3f}".removeprefix("0"),
                (value, index + offset),
                xytext=(-5 if left else 5, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                **words,
            )
    axes.annotate(
        " ".join({"box": "\u25a0 box", "click": "\u25cf click"}[kind] for kind in sorted(kinds)),
        (0.5, 1.0),
        xycoords="axes fraction",
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=6.5,
        color=LIGHT["accuracy"],
    )


def _kind(row: Row) -> str:
    """The name of the colour of a row's bars."""
    return "rival" if is_rival(row["recipe"]) else "own"


def _wrapped(note: str, width: float = 124) -> list[str]:
    """Lines of a note, in small letters' widths; a capital is half as wide again."""
    lines, room = [""], width
    most = int(width / 1.5) - 1  # letters of a word that fit, whatever they are
    parts = (
        word[start : start + most] for word in note.split() for start in range(0, len(word), most)
    )
    for word in parts:
        taken = sum(1.5 if letter.isupper() else 1.0 for letter in word) + 1
        if lines[-1] and taken > room:
            lines.append("")
            room = width
        lines[-1] += f" {word}" if lines[-1] else word
        room -= taken
    return lines


def _end(values: Sequence[float], room: float = 1.16) -> float:
    return room * max(values, default=0.0) or 1.0


def _ticks(end: float) -> list[float]:
    """Round figures from 0 up to `end`."""
    step = 10 ** math.floor(math.log10(end))
    step = next(step * part for part in (0.2, 0.5, 1.0, 2.0) if end / (step * part) <= 6.5)
    return [step * n for n in range(int(end / step) + 1)]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
