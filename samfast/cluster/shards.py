"""Shards, the unit of work: entries of a source in their order, cut every so many.

The same source always has the same shards. Each is answered by itself, in batches that begin with
it, so that one device, many devices and a run that was interrupted give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

SHARD_SIZE = 64
"""Entries in a shard by default: what an interruption costs, against files of very few rows."""


class Entry(NamedTuple):
    """An image of a source, not yet read.

    key    names it in results; no other entry of the source has it
    size   in bytes, -1 where the listing does not say
    file   path or URL of the file that holds it; empty: the key below the reader's root
    start  in a tar: the offset of its bytes; in a Parquet file: its row; -1: the whole file
    """

    key: str
    size: int = -1
    file: str = ""
    start: int = -1


def key_of(name: str) -> str:
    """A file's name as a key: bytes that are no text are escaped, since Parquet holds text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Shard:
    """Consecutive entries; number counts from 0."""

    number: int
    entries: Sequence[Entry]

    @property
    def name(self) -> str:
        """The stem of its file."""
        return f"{self.number:08d}"


def shard_count(entries: int, shard_size: int) -> int:
    """The number of shards of so many entries."""
    return -(-entries // shard_size)


def shard_of(entries: Sequence[Entry], number: int, shard_size: int) -> Shard:
    """The shard of that number."""
    return Shard(number, tuple(entries[number * shard_size : (number + 1) * shard_size]))


def shards_left(
    entries: Sequence[Entry], shard_size: int, done: Mapping[int, Any]
) -> Iterator[Shard]:
    """The shards whose numbers are not among `done`, in order."""
    for number in range(shard_count(len(entries), shard_size)):
        if number not in done:
            yield shard_of(entries, number, shard_size)


@dataclass(frozen=True)
class RunIdentity:
    """All that the results of a run depend on; two runs of one identity write the same bytes.

    model       its name
    weights     a fingerprint of all of them
    recipe      its name; settings, its fields as text
    device      "cpu", "cuda", ...: the last bits of scores differ between them
    work        "everything", "prompts" or "embeddings"
    options     of the work, as JSON can hold them
    source      the digest of the source's entries
    entries     how many these are
    shard_size  entries in a shard
    versions    of the programs, as "samfast 0.2.0, torch 2.13.0"
    """

    model: str
    weights: str
    recipe: str
    settings: str
    device: str
    work: str
    options: Mapping[str, Any]
    source: str
    entries: int
    shard_size: int
    versions: str

    @property
    def digest(self) -> str:
        """Names the run in each of its files."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def shards(self) -> int:
        """How many shards the run has."""
        return shard_count(self.entries, self.shard_size)
