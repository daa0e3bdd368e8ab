"""Pages that a browser opens from a folder: one file each, nothing loaded from elsewhere, no
scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #4c78a855 }
body { font: 14px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid var(--line);
vertical-align: top } th { font-weight: 600 } .n { text-align: right; white-space: nowrap }
td.name { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere }
tr.rest { color: gray } pre, code { font-family: ui-monospace, monospace; font-size: .9em }
details pre { margin: .3rem 0; overflow-x: auto } .note { color: gray }
.scroll { overflow-x: auto } svg { width: 100%; height: auto; background: var(--soft) }
svg text { font: 11px system-ui, sans-serif; fill: currentColor }
"""


def page(title: str, *parts: str, style: str = STYLE) -> bytes:
    """A whole page; the parts are HTML, the title is text and the first heading, style is CSS."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta '
        f'charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, '
        f'initial-scale=1">\n<style>{style}</style>\n</head>\n'
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    ).encode()


class Raw(str):
    """A cell that is HTML already."""


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str | None]], names: Sequence[int] = (0,)
) -> str:
    """A table. Cells are text, None an empty one; columns of `names` hold names, the others
    numbers.
    """
    if not rows:
        return '<p class="note">none</p>'
    head = "".join(
        f'<th class="{_kind(i, names)}">{escape(text)}</th>' for i, text in enumerate(headings)
    )
    body = "\n".join(
        "<tr>"
        + "".join(f'<td class="{_kind(i, names)}">{_cell(cell)}</td>' for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def note(text: str) -> str:
    """A paragraph of explanation, from text."""
    return f'<p class="note">{escape(text)}</p>'


def link(file: str) -> str:
    """A link to a file of the same folder."""
    return f'<a href="{escape(file)}">{escape(file)}</a>'


def _kind(column: int, names: Sequence[int]) -> str:
    return "name" if column in names else "n"


def _cell(cell: str | None) -> str:
    return "" if cell is None else cell if isinstance(cell, Raw) else escape(cell)
