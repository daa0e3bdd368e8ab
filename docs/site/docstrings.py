"""Shows samfast's docstrings on the site: lists of parameters become tables, examples code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"^(\w+(?:, \w+)*)  +(\S.*)$")
LONG_NAME = re.compile(r"^(\w+(?:, \w+)*)$")


def tabulate(text: str) -> str:
    """A docstring in Markdown: its `name   meaning` blocks are tables, its examples fenced.

    A block is a paragraph that begins with a name, two spaces or more and its meaning. A line that
    is indented continues the entry above it. An example is a paragraph that begins with `>>>`.
    """
    return "\n\n".join(_paragraph(paragraph) for paragraph in text.split("\n\n"))


def _paragraph(paragraph: str) -> str:
    lines = paragraph.splitlines()
    if paragraph.startswith(">>>"):
        return f"```pycon\n{paragraph}\n```"
    if not lines or not ENTRY.match(lines[0]):
        return paragraph
    entries: list[list[str]] = []
    for line in lines:
        if entry := ENTRY.match(line) or LONG_NAME.match(line):
            entries.append(list(entry.groups(default="")) if entry.re is ENTRY else [entry[1], ""])
        else:
            entries[-1][1] = f"{entries[-1][1]} {line.strip()}".strip()
    rows = (f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |" for name, meaning in entries)
    return "\n".join(("| name | meaning |", "| --- | --- |", *rows))


class TabulatedDocstrings(griffe.Extension):
    """Rewrites each docstring as griffe reads it."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Tabulate the parameters of one object's docstring."""
        if obj.docstring:
            obj.docstring.value = tabulate(obj.docstring.value)
