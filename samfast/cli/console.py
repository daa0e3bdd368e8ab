"""What the user sees: messages and progress on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from samfast.atomic_files import atomic_write


class CommandLineError(Exception):
    """The command line is wrong or impossible to follow. One line on stderr, exit code 2."""


class StdoutError(Exception):
    """Stdout cannot be written: the disk that it goes to is full, or it is closed."""


class Console:
    """Prints messages on stderr and results on stdout without breaking a progress bar.

    stdout_error  why results were lost; the command goes on, because its files are worth more
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._held: list[str] | None = None  # results that wait to be shown
        self.stdout_error: StdoutError | None = None

    def warn(self, text: str) -> None:
        """Print `samfast: text` on stderr, as one line."""
        with suppress(OSError, ValueError):  # there is no other place to say so
            self._write(f"samfast: {printable(' '.join(text.split()))}", sys.stderr)

    def result(self, text: str) -> None:
        """Print one line on stdout."""
        text = printable(text)
        if self._held is None:
            self._show(text)
        else:
            self._held.append(text)

    @contextmanager
    def results_together(self) -> Iterator[None]:
        """Show the results of the block in one go, at its end: to show each takes longer."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                self._show("\n".join(held))

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
        if sys.stderr is None or not sys.stderr.isatty():
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

    def _show(self, text: str) -> None:
        if self.stdout_error is None:
            try:
                with stdout_stream() as stream:
                    self._write(text, stream)
            except StdoutError as error:
                self.stdout_error = error

    def _write(self, text: str, stream: Any) -> None:
        if stream is None:
            return
        encoding = getattr(stream, "encoding", None) or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        if self._bar is None:
            stream.write(f"{text}\n")
            stream.flush()
        else:
            self._bar.write(text, file=stream)


def printable(text: str) -> str:
    """The text with escapes instead of characters that would break a line or steer a terminal, and
    instead of the undecodable bytes of a file name.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


@contextmanager
def stdout_stream() -> Iterator[Any]:
    """Stdout, to write to; StdoutError if that fails, BrokenPipeError if its reader has gone."""
    if sys.stdout is None:
        raise StdoutError("stdout is closed, so the results cannot be shown; give it a place")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        raise StdoutError(f"stdout cannot be written: {error.strerror or error}") from error


def flush_stdout() -> None:
    """Write what is left in stdout's buffer; StdoutError or BrokenPipeError if that fails."""
    if sys.stdout is not None:
        with stdout_stream():
            pass


def discard(stream: Any) -> None:
    """Send what is left in a stream's buffer nowhere: Python would complain of it at exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def occupy_closed_descriptors() -> None:
    """Keep the numbers of a closed stdin, stdout and stderr from being given to files: what a
    library prints would land in them.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as aligned lines, headings first."""
    cells = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def write_json(value: Any, destination: str) -> None:
    """Write indented JSON to a file, or to stdout if `destination` is "-".

    Raises OutputError if the file cannot be written, StdoutError if stdout cannot.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    if destination == "-":
        with stdout_stream() as stream:
            stream.write(text)
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
