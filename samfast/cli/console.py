"""What the user sees: messages and progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CommandLineError(Exception):
    """The command line asks for something impossible. One line, exit code 2."""


class Console:
    """Lines for people, on stderr, that never tear a progress bar apart; results, on stdout."""

    def __init__(self) -> None:
        self._bar: Any = None

    def warn(self, text: str) -> None:
        """One line on stderr, `samfast: text`; a message of several lines is joined into one."""
        self._write(f"samfast: {' '.join(text.split())}", sys.stderr)

    def result(self, text: str) -> None:
        """One line on stdout."""
        self._write(text, sys.stdout)

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """A bar on stderr, if that is a terminal; the block calls what it gets with the steps it
        has done.
        """
        if not sys.stderr.isatty():
            yield lambda steps: None
            return
        from tqdm import tqdm

        with tqdm(total=total, unit=unit, file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
            self._bar = bar
            try:
                yield lambda steps: _advance(bar, steps)
            finally:
                self._bar = None

    def _write(self, text: str, stream: Any) -> None:
        if self._bar is None:
            print(text, file=stream, flush=True)
        else:
            self._bar.write(text, file=stream)


def _advance(bar: Any, steps: int) -> None:
    bar.update(steps)


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, a line a row, under a line of headings."""
    cells = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def write_json(value: Any, destination: str) -> None:
    """`value` as indented JSON into the file `destination`, or on stdout if that is "-".

    OutputError if the file cannot be written.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    if destination == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    from samfast.atomic_files import atomic_write

    atomic_write(Path(destination), text.encode())


def check_json_destination(destination: str | None) -> None:
    """CommandLineError when `--json FILE` could not be written later, after an hour's work."""
    if destination in (None, "-"):
        return
    path = Path(str(destination))
    if path.is_dir():
        raise CommandLineError(f"--json {path}: that is a directory (name a file in it)")
    if not path.absolute().parent.is_dir():
        raise CommandLineError(
            f"--json {path}: there is no directory {path.parent} (make it first)"
        )
