"""One HTML page of all charts and figures, whole in itself: no scripts, nothing loaded from
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from samfast.bench import html
from samfast.bench.report.charts import number
from samfast.bench.report.colours import DARK, LIGHT, themed, variables
from samfast.bench.report.groups import Group, stamp_words
from samfast.bench.report.pictures import inline
from samfast.bench.results import Row, place

STYLE = f"""
:root {{ {variables(LIGHT)} color-scheme: light dark; }}
@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}
@media print {{ :root {{ {variables(LIGHT)} color-scheme: light; }} figure, tr {{ break-inside:
avoid; }} }} * {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color:
var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem; }} h3 {{ font-size: 1rem;
}} .stamp, caption {{ color: var(--muted); font-size: .85rem; overflow-wrap: anywhere; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
gap: 1rem; }} figure {{ margin: 0; }} svg {{ display: block; width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .85rem; margin: 1rem 0; }}
caption {{ text-align: left; }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid var(--grid); text-align: right;
white-space: nowrap; }} th:first-child, td:first-child, td.words {{ text-align: left; }}
td.words {{ white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }}
"""

COLUMNS = (
    ("recipe", "recipe"),
    ("batch", "batch_size"),
    ("encoder, images/s", "encoder_images_per_second"),
    ("whole, images/s", "images_per_second"),
    ("spread", "spread"),
    ("peak GiB", "peak_memory_bytes"),
    ("first call, s", "first_call_seconds"),
    ("largest error", "max_relative_error"),
    ("mask IoU with fp32", "mask_iou"),
    ("of the ceiling", "share_of_ceiling"),
)


@dataclass(frozen=True)
class Chart:
    """A chart in a page: name is unique there; svg is the whole SVG file; words say what it
    shows.
    """

    name: str
    svg: str
    words: str


def page(parts: Sequence[tuple[Group, Sequence[Chart]]], scores: Sequence[Row]) -> bytes:
    """The page: groups one after the other, each with charts, all its figures, and what has none
    and why.
    """
    body = [
        "<p>Drawn from the files of <code>samfast bench</code> and <code>samfast eval</code>. Bars "
        "begin at 0. "
        "Rows of different models, weights, devices, versions or commits stand apart. A rival's "
        "largest error is of "
        "its embeddings alone, a recipe's of its logits and scores too.</p>"
    ]
    for group, charts in parts:
        body += [f"<h2>{escape(group.title)}</h2>", f'<p class="stamp">{escape(group.stamp)}</p>']
        body.append('<div class="charts">')
        body += [
            f"<figure>{themed(inline(c.svg, c.name, escape(c.words)))}</figure>" for c in charts
        ]
        body.append("</div>")
        shown = [row for row in group.rows if row not in group.without()]
        if shown:
            body.append(
                _table("All figures", [name for name, _ in COLUMNS], [_cells(row) for row in shown])
            )
        if group.without():
            cells = [
                [row["recipe"], str(row["batch_size"]), row["status"]] for row in group.without()
            ]
            body.append(
                _table("No figures, and why", ["recipe", "batch", "status"], cells, words=2)
            )
    if scores:
        body.append("<h2>Accuracy</h2>")
        headings = ["recipe", "model", "images", "masks", "click mIoU", "box mIoU", "measured"]
        body.append(
            _table(
                "Results of samfast eval", headings, [_score(score) for score in scores], words=6
            )
        )
    return html.page("samfast: what was measured", *body, style=STYLE)


def words(title: str, group: Group, rows: Iterable[Row], key: str, scale: float = 1.0) -> str:
    """A chart in words, for who cannot see it."""
    figures = [
        f"{row['recipe']} {number(row[key] * scale)}" for row in rows if row[key] is not None
    ]
    return f"{title}; {group.title}: {', '.join(figures)}"


def _cells(row: Row) -> list[str]:
    return [_cell(key, row[key]) for _, key in COLUMNS]


def _cell(key: str, value: object) -> str:
    if value is None:
        return "–"
    if not isinstance(value, int | float) or key == "batch_size":
        return str(value)
    if key == "peak_memory_bytes":
        return number(value / 2**30)
    if key in ("spread", "share_of_ceiling"):
        return f"{100 * value:.0f} %"
    if key == "mask_iou":
        return f"{value:.4f}"
    return f"{value:.1e}" if key == "max_relative_error" else number(value)


def _score(score: Row) -> list[str]:
    means = [(score.get(prompt) or {}).get("miou") for prompt in ("point", "box")]
    stamp = f"{place(score)}, {stamp_words([score['environment']])}; {score['file']}"
    counts = [str(score.get("images", "–")), str(score["masks"])]
    return [
        score["recipe"],
        score["model"],
        *counts,
        *("–" if m is None else f"{m:.4f}" for m in means),
        stamp,
    ]


def _table(
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: int | None = None,
) -> str:
    """words: the column whose cells are sentences."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    kinds = [' class="words"' if n == words else "" for n in range(len(headings))]
    cells = (
        "".join(f"<td{k}>{escape(c)}</td>" for k, c in zip(kinds, row, strict=True)) for row in rows
    )
    body = "".join(f"<tr>{each}</tr>\n" for each in cells)
    return (
        "<div "
        f'class="wide"><table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )
