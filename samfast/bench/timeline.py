"""A run's memory over time as a page: who had how much of it, and where the peak was."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from samfast.bench import html
from samfast.bench.allocations import Moment, Recorded
from samfast.bench.events import Span

SHOWN = 12
"""Labels with an area of their own, those that had most at any moment; the others share one."""

COLOURS = (
    *(
        "#4c78a8",
        "#f58518",
        "#54a24b",
        "#e45756",
        "#72b7b2",
        "#eeca3b",
        "#b279a2",
        "#ff9da6",
        "#9d755d",
    ),
    *("#8cd17d", "#499894", "#d37295"),
)
WIDTH, HEIGHT, BAND = 1000, 320, 18
"""Of the picture, and of the band of regions under it, in its own units."""

BEFORE, OTHERS = "there before the run", "everything else"


def page(recorded: Recorded, title: str) -> bytes:
    """The page, whole: a picture and a table, without scripts."""
    history = recorded.history
    held = {own.label: own.bytes for own in history.live}
    most = _most(history.moments)
    names = sorted(most, key=lambda name: (-held.get(name, 0), -most[name]))
    own = set(sorted(names, key=lambda name: -max(most[name], held.get(name, 0)))[:SHOWN])
    names = [name for name in names if name in own]
    rest = sum(size for name, size in held.items() if name not in own)
    layers = [(BEFORE, history.before, "#8888")]
    layers += [(name, held.get(name, 0), COLOURS[i]) for i, name in enumerate(names)]
    layers.append((OTHERS, rest, "#bbb"))
    rows = [
        [
            html.Raw(f'<span style="color:{colour}">&#9632;</span> {escape(name)}'),
            size_of(size),
            size_of(most[name]) if name in most else None,
        ]
        for name, size, colour in layers
        if size or name in most
    ]
    return html.page(
        title,
        f"<p>The peak: {size_of(history.peak)}, marked by the line. The areas are what the "
        f"{recorded.by}s in the "
        "table had at each moment; of each part of the run the fullest moment is drawn.</p>",
        *(html.note(text) for text in remarks(recorded)),
        picture(recorded, layers) if history.moments else html.note("nothing was allocated"),
        "<h2>Who had it</h2>",
        html.table((recorded.by, "at the peak", "at its own most"), rows),
    )


def remarks(recorded: Recorded) -> list[str]:
    """What is to be known about these figures, a sentence or two each."""
    found = []
    if recorded.by == "operator":
        found.append(
            "On a CPU: what PyTorch's operators took during the run, beside the weights and what "
            "else was there. "
            "Lines of Python, and PyTorch's own memory snapshot and timeline, need a GPU."
        )
    if recorded.graph_bytes:
        found.append(
            f"Beside this, CUDA graphs keep {size_of(recorded.graph_bytes)} for their intermediate "
            "results, taken "
            "when they were recorded: a replay allocates nothing."
        )
    if recorded.incomplete:
        found.append(
            "There were more events than are kept, so the first are missing: profile fewer images."
        )
    return found


def picture(recorded: Recorded, layers: Sequence[tuple[str, int, str]]) -> str:
    """An SVG of stacked areas, the layers (label, bytes at the peak, colour) from below, over the
    regions.
    """
    history = recorded.history
    moments, top = history.moments, history.peak or 1
    names = {name for name, _, _ in layers}
    base = [0.0] * len(moments)
    areas = []
    for name, size, colour in layers:
        upper = [low + _of(moment, name, names) for low, moment in zip(base, moments, strict=True)]
        if upper != base:
            outline = _outline(base, upper, top)
            title = f"{escape(name)}: {size_of(size)} at the peak"
            areas.append(f'<path d="{outline}" fill="{colour}"><title>{title}</title></path>')
        base = upper
    start, end = history.start, history.end
    x = _x(history.time, start, end)
    at = min(max(x, 60), WIDTH - 60)
    label = f'<text x="{at:.1f}" y="12" text-anchor="middle">{size_of(top)}</text>'
    mark = f'<path d="M{x:.1f} 0V{HEIGHT}" stroke="currentColor" stroke-dasharray="3 3"/>'
    bands = "".join(_band(span, start, end) for span in recorded.regions)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + BAND}" role="img" aria-label="memory over time">'
        f"{''.join(areas)}{mark}{label}{bands}</svg>"
    )


def size_of(count: int) -> str:
    """Bytes for people."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def _most(moments: Sequence[Moment]) -> dict[str, int]:
    """The most that each label had in any of the moments."""
    found: dict[str, int] = {}
    for moment in moments:
        for label, size in moment.by_label.items():
            found[label] = max(size, found.get(label, 0))
    return found


def _of(moment: Moment, name: str, names: set[str]) -> int:
    if name == BEFORE:
        return moment.before
    if name == OTHERS:
        return sum(size for label, size in moment.by_label.items() if label not in names)
    return moment.by_label.get(name, 0)


def _outline(lower: Sequence[float], upper: Sequence[float], top: float) -> str:
    """Steps along the upper edge and back along the lower one."""
    step = WIDTH / len(upper)
    forth = " ".join(f"V{_y(y, top)}H{(i + 1) * step:.1f}" for i, y in enumerate(upper))
    back = " ".join(f"V{_y(y, top)}H{i * step:.1f}" for i, y in reversed(list(enumerate(lower))))
    return f"M0 {_y(lower[0], top)}{forth}{back}Z"


def _y(size: float, top: float) -> str:
    return f"{HEIGHT - (HEIGHT - 20) * size / top:.1f}"


def _x(time: float, start: float, end: float) -> float:
    return WIDTH * min(1.0, max(0.0, (time - start) / (end - start))) if end > start else 0.0


def _band(span: Span, start: float, end: float) -> str:
    left, right = _x(span.start, start, end), _x(span.end, start, end)
    if right <= left:
        return ""
    name = escape(span.name)
    text = (
        f'<text x="{left + 3:.1f}" y="{HEIGHT + 13}">{name}</text>'
        if right - left > 7 * len(name)
        else ""
    )
    return (
        f'<rect x="{left:.1f}" y="{HEIGHT}" width="{right - left:.2f}" height="{BAND}" '
        'fill="#8884" stroke="#8888">'
        f"<title>{name}</title></rect>{text}"
    )
