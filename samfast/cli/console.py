"""What the user sees: messages and progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samfast.atomic_files import atomic_write


class CommandLineError(Exception):
    """The command line is wrong or impossible to follow. One line on stderr, exit code 2."""


class Console:
    """Prints messages on stderr and results on stdout without breaking a progress bar."""

    def __init__(self) -> None:
        self._bar: Any = None

    def warn(self, text: str) -> None:
        """Print `samfast: text` on stderr, as one line."""
        self._write(f"samfast: {' '.join(text.split())}", sys.stderr)

    def result(self, text: str) -> None:
        """Print one line on stdout."""
        self._write(text, sys.stdout)

    def report(
        self,
        value: Any,
        describe: Callable[[Any], list[str]],
        destination: str | None,
        *,
        also_text: bool = False,
    ) -> None:
        """Write a result as JSON if a destination is given, else the lines that describe it.

        also_text  print the lines besides a JSON file too
        """
        if destination is not None:
            write_json(value, destination)
        if destination is None or (also_text and destination != "-"):
            for line in describe(value):
                self.result(line)

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Show a bar if stderr is a terminal; yields the function to call with steps done."""
        if not sys.stderr.isatty():
            yield lambda steps: None
            return
        from tqdm import tqdm

        with tqdm(total=total, unit=unit, file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
            self._bar = bar
            try:
                yield bar.update
            finally:
                self._bar = None

    @property
    def has_bar(self) -> bool:
        """Whether a progress bar is shown."""
        return self._bar is not None

    def stage(self, text: str) -> None:
        """Name what runs now, on the progress bar if there is one."""
        if self._bar is not None:
            self._bar.set_description_str(text)

    def _write(self, text: str, stream: Any) -> None:
        if self._bar is None:
            print(text, file=stream, flush=True)
        else:
            self._bar.write(text, file=stream)


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as aligned lines, headings first."""
    cells = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def write_json(value: Any, destination: str) -> None:
    """Write indented JSON to a file, or to stdout if `destination` is "-".

    Raises OutputError if the file cannot be written.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    if destination == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    atomic_write(Path(destination), text.encode())


def check_output_file(option: str, file: str) -> None:
    """CommandLineError, before any work, if a file could not be written at the end."""
    path = Path(file)
    if path.is_dir():
        raise CommandLineError(f"{option} {path}: that is a directory (name a file in it)")
    if not path.absolute().parent.is_dir():
        raise CommandLineError(
            f"{option} {path}: there is no directory {path.parent} (make it first)"
        )


def check_json_destination(destination: str | None) -> None:
    """CommandLineError, before any work, if `--json FILE` could not be written at the end."""
    if destination not in (None, "-"):
        check_output_file("--json", str(destination))
