"""Entries -> decoded images, read on threads ahead of those who use them, in order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

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
            read = partial(read_entry, reader, with_id=with_ids)
            yield _in_order(partial(pool.submit, read), entries, threads)
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    submit: Callable[[Entry], Future[ReadEntry]], entries: Iterable[Entry], threads: int
) -> Iterator[ReadEntry]:
    waiting: deque[Future[ReadEntry]] = deque()
    read: SimpleQueue[int] = SimpleQueue()  # bytes of pixels, by the threads that read them
    held = 0

    def note(future: Future[ReadEntry]) -> None:
        if not future.cancelled() and future.exception() is None:
            read.put(_bytes(future.result()))

    for entry in entries:
        future = submit(entry)
        future.add_done_callback(note)
        waiting.append(future)
        while len(waiting) > threads:
            while not read.empty():
                held += read.get()
            if len(waiting) <= 2 * threads and held <= MAX_PIXEL_BYTES:
                break
            first = waiting.popleft().result()
            held -= _bytes(first)
            yield first
    while waiting:
        yield waiting.popleft().result()


def _bytes(read: ReadEntry) -> int:
    """Of its pixels."""
    return 0 if read.image is None else read.image.pixels.nbytes
