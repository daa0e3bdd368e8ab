"""How `samfast run` goes on: a bar or lines on stderr, and events as lines of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from samfast.cli.console import Console, printable
from samfast.cli.segment_report import plural
from samfast.errors import OutputError

if TYPE_CHECKING:
    from samfast.cluster.shard_files import ShardRecord
    from samfast.cluster.work import DoneImage, Failure

LINE_SECONDS = 30.0
"""Between two lines on a stderr that shows no bar."""

EVENT_SECONDS = 2.0
"""Between two events of progress at least."""

MAX_WARNINGS = 20
"""Bad images that are named on stderr; failures.parquet has them all."""

WriteEvent = Callable[[dict[str, Any]], None]


@contextmanager
def event_lines(destination: str | None, console: Console) -> Iterator[WriteEvent]:
    """Yields a function that writes an event as a line of JSON: to a file, or for "-" to stdout.

    Raises OutputError if the file cannot be written.
    """
    if destination is None:
        yield lambda event: None
    elif destination == "-":
        yield lambda event: console.result(json.dumps(event, allow_nan=False))
    else:
        try:
            with open(destination, "w", encoding="utf-8") as file:
                yield lambda event: print(json.dumps(event), file=file, flush=True)
        except OSError as error:
            raise OutputError(f"{destination}: cannot be written: {error.strerror}") from error


class RunProgress:
    """Counts images as they are done, and says so.

    total    images that are left to do
    failed   images that failed before
    advance  of the console's bar
    """

    def __init__(
        self,
        console: Console,
        write: WriteEvent,
        advance: Callable[[int], None],
        total: int,
        failed: int,
    ) -> None:
        self._console, self._write, self._advance = console, write, advance
        self._total, self._failed = total, failed
        self._images = self._failed_now = self._masks = self._named = 0
        self._started = self._said = self._sent = time.monotonic()

    @property
    def rate(self) -> float:
        """Images a second since the work began, the failed ones included."""
        return self._images / max(1e-9, time.monotonic() - self._started)

    def on_image(self, image: DoneImage | Failure) -> None:
        """Count an image; of a bad one, say why."""
        self._images += 1
        reason = getattr(image, "reason", None)
        if reason is None:
            self._masks += len(getattr(image, "masks", ()))
            for note in getattr(image, "notes", ()):
                self._name(f"{printable(getattr(image, 'key', ''))}: {note}")
        else:
            self._failed_now += 1
            key = str(getattr(image, "image", ""))
            self._name(f"{printable(key)}: {reason}")
            self._write({"event": "failure", "image": key, "reason": reason})
            self._console.stage(f"{self._failed + self._failed_now} failed")
        self._advance(1)
        self._tell()

    def on_shard(self, record: ShardRecord) -> None:
        """Say that a shard is written."""
        self._write(
            {
                "event": "shard",
                "number": record.number,
                "images": record.images,
                "failed": record.failed,
                "rows": record.rows,
                "bytes": record.bytes,
            }
        )

    def describe(self) -> str:
        """What this run has done."""
        seconds = time.monotonic() - self._started
        masks = f"; {plural(self._masks, 'mask')}" if self._masks else ""
        return (
            f"{self._images - self._failed_now} done, {self._failed_now} failed{masks} in "
            f"{seconds:.1f} s, {self.rate:.3g} images/s"
        )

    def _name(self, text: str) -> None:
        if self._named < MAX_WARNINGS:
            self._console.warn(text)
        elif self._named == MAX_WARNINGS:
            self._console.warn("more images are not named here; failures.parquet has all failures")
        self._named += 1

    def _tell(self) -> None:
        now, left = time.monotonic(), self._total - self._images
        seconds = left / self.rate
        if now - self._sent >= EVENT_SECONDS:
            self._sent = now
            self._write(
                {
                    "event": "progress",
                    "images": self._images,
                    "total": self._total,
                    "failed": self._failed + self._failed_now,
                    "images_per_second": round(self.rate, 3),
                    "eta_seconds": round(seconds, 1),
                }
            )
        if now - self._said >= LINE_SECONDS and not self._console.has_bar:
            self._said = now
            self._console.warn(
                f"{self._images} of {self._total} images, {self._failed + self._failed_now} "
                f"failed, {self.rate:.3g} images/s, {_duration(seconds)} left"
            )


def _duration(seconds: float) -> str:
    """A time as a person says it: 40 s, 12 min, 5.3 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
