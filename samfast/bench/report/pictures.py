"""A chart as SVG and as PNG, the same bytes each time."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

DPI = 180

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # words stay words: they can be searched, copied and read aloud
    "font.family": ["DejaVu Sans", "sans-serif"],
    "text.parse_math": False,  # a name may hold a dollar sign
}


def styled(more: Mapping[str, Any] = MappingProxyType({})) -> AbstractContextManager[None]:
    """Our settings of matplotlib, and more, within a block; the caller's come back after it."""
    import matplotlib as mpl

    settings: Any = {**STYLE, **more}
    return mpl.rc_context(settings)


def svg(figure: Any, name: str) -> str:
    """The figure as a whole SVG file, without a date. name tells its parts' ids from those of other
    charts.
    """
    out = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with styled({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata=nothing)
    return out.getvalue()


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    with styled():
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def inline(text: str, name: str, alt: str) -> str:
    """An SVG file as an element of a page, with ids of its own, as wide as there is room; alt: what
    it shows.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="c{name}-', text)
    text = re.sub(r'href="#', f'href="#c{name}-', text)
    text = text.replace("url(#", f"url(#c{name}-")
    opening, _, rest = text.partition(">")
    opening = re.sub(r'\s(width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{alt}">{rest}'
