"""Entries -> decoded images, read on threads ahead of those who use them, in order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from samfast.cluster.shards import Entry
from samfast.cluster.sources import Reader
from samfast.errors import ImageError
from samfast.images import LoadedImage, load_bytes

READERS, READERS_BESIDE_A_CPU = 8, 1
"""Threads that read and decode; the second, where a CPU computes masks on all cores."""

MAX_PIXEL_BYTES = 1 << 30
"""Of decoded images that wait, beside at least one for each thread."""


@dataclass(frozen=True, eq=False)
class ReadEntry:
    """An entry that was read.

    image     upright RGB, or None if it is bad
    error     why it is bad
    image_id  SHA-256 of its file, as `samfast serve` names images, if it was asked for
    """

    entry: Entry
    image: LoadedImage | None
    error: ImageError | None
    image_id: str = ""


def read_entry(reader: Reader, entry: Entry, *, with_id: bool = False) -> ReadEntry:
    """Read and decode an entry. A bad image is an answer; SourceGoneError is raised."""
    image_id = ""
    try:
        data = reader.read(entry)
        image_id = hashlib.sha256(data).hexdigest() if with_id else ""
        return ReadEntry(entry, load_bytes(data, entry.key), None, image_id)
    except ImageError as error:
        return ReadEntry(entry, None, error, image_id)


@contextmanager
def read_ahead(
    reader: Reader, entries: Iterable[Entry], threads: int, *, with_ids: bool = False
) -> Iterator[Iterator[ReadEntry]]:
    """The entries, read and in order; the threads end with the block. `with_ids`: with image_id.

    Twice as many images as threads are read ahead, or fewer that have MAX_PIXEL_BYTES together.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="samfast-reader") as pool:
        try:
            read = partial(pool.submit, read_entry, reader, with_id=with_ids)
            yield _in_order(read, entries, threads)
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    submit: Callable[[Entry], Future[ReadEntry]], entries: Iterable[Entry], threads: int
) -> Iterator[ReadEntry]:
    waiting: deque[Future[ReadEntry]] = deque()
    for entry in entries:
        waiting.append(submit(entry))
        while len(waiting) > threads and (
            len(waiting) > 2 * threads or _bytes(waiting) > MAX_PIXEL_BYTES
        ):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _bytes(waiting: Iterable[Future[ReadEntry]]) -> int:
    """Of the pixels of those that are read already."""
    done = (each.result() for each in waiting if each.done() and each.exception() is None)
    return sum(each.image.pixels.nbytes for each in done if each.image is not None)
