"""`manifest.json`: of which run the results are, and which of its shards are done.

The files of shards are the truth, for each is whole and says what it is; the manifest spares a
resumed run to open them. It is written again now and then, so that a run that was killed has files
that it does not list: these are looked at when the run goes on. A damaged manifest is made again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

from samfast.cluster.destination import Destination
from samfast.cluster.shard_files import (
    ShardRecord,
    failures_bytes,
    read_header,
    shard_folder,
    shard_path,
)
from samfast.cluster.shards import RunIdentity
from samfast.cluster.work import Failure
from samfast.errors import DatasetError, InputError

MANIFEST, FAILURES = "manifest.json", "failures.parquet"

FORMAT = "samfast-run-1"

RECORD_KEYS = [each.name for each in fields(ShardRecord)]


@dataclass
class Manifest:
    """The shards of a run that are done.

    asked     how the model was named, so that a finished run need not load it to know itself
    extra     what else it keeps: the source as it was named, and categories of prompts
    shards    by their numbers
    failures  of all shards, by their numbers
    """

    destination: Destination
    identity: RunIdentity
    asked: dict[str, Any]
    shards: dict[int, ShardRecord] = field(default_factory=dict)
    failures: dict[int, list[Failure]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, record: ShardRecord, failures: Iterable[Failure]) -> None:
        """List a shard whose file is written. `write` makes it last."""
        self.shards[record.number] = record
        if listed := list(failures):
            self.failures[record.number] = listed

    def remove(self, number: int) -> None:
        """List a shard no more, so that it is done again."""
        self.shards.pop(number, None)
        self.failures.pop(number, None)

    @property
    def failed(self) -> int:
        """Images without an answer."""
        return sum(record.failed for record in self.shards.values())

    @property
    def images(self) -> int:
        """Images with an answer."""
        return sum(record.images for record in self.shards.values())

    @property
    def finished(self) -> bool:
        """Whether all shards are done."""
        return len(self.shards) == self.identity.shards

    def write(self) -> None:
        """Write failures.parquet and manifest.json; OutputError if that fails."""
        failures = [each for number in sorted(self.failures) for each in self.failures[number]]
        self.destination.write(FAILURES, failures_bytes(failures))
        shards = [self.shards[number] for number in sorted(self.shards)]
        content = {
            "format": FORMAT,
            "run": self.identity.digest,
            "identity": asdict(self.identity),
            "asked": self.asked,
            **self.extra,
            "finished": self.finished,
            "images": self.images,
            "failed": self.failed,
            "rows": sum(record.rows for record in shards),
            "shard_keys": RECORD_KEYS,
            "shards": [astuple(record) for record in shards],
        }
        self.destination.write(MANIFEST, _text(content))


@dataclass(frozen=True)
class StoredManifest:
    """The content of a manifest that was read and is not damaged."""

    run: str
    identity: RunIdentity
    asked: dict[str, Any]
    shards: dict[int, ShardRecord]
    categories: list[dict[str, Any]]


def read_manifest(destination: Destination) -> StoredManifest | None:
    """The manifest of a destination; None if there is none. DatasetError if it is damaged."""
    data = destination.read(MANIFEST)
    if data is None:
        return None
    try:
        content = json.loads(data)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
        identity = RunIdentity(**content["identity"])
        records = [ShardRecord(*map(int, each)) for each in content["shards"]]
        if content["run"] != identity.digest or content["shard_keys"] != RECORD_KEYS:
            raise ValueError("its parts do not fit each other")
        return StoredManifest(
            identity.digest,
            identity,
            dict(content["asked"]),
            {record.number: record for record in records},
            [dict(each) for each in content.get("categories", ())],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{destination.below(MANIFEST)}: damaged ({type(error).__name__}: {error})"
        ) from error


def open_manifest(
    destination: Destination,
    identity: RunIdentity,
    asked: dict[str, Any],
    say: Callable[[str], None],
) -> Manifest:
    """The manifest of a run, with the shards that are done already.

    say  called with what was found and mended, a sentence each

    A shard counts whose file is there, as long as the manifest says, or says itself that it is of
    this run. Raises InputError if the destination has results of another run.
    """
    manifest = Manifest(destination, identity, asked)
    try:
        stored = read_manifest(destination)
    except DatasetError as error:
        say(f"{error}; made again from the files of shards")
        stored = None
    if stored is not None and stored.run != identity.digest:
        raise InputError(refusal(destination, stored.identity, identity))
    listed = {} if stored is None else stored.shards
    sizes = destination.sizes(shard_folder(identity.work))
    for name, size in sorted(sizes.items()):
        number = _number(name)
        if number is None or number >= identity.shards:
            continue
        record = listed.get(number)
        if record is None or record.bytes != size or record.failed:
            record = _adopt(manifest, number, size, say)
        if record is not None:
            manifest.shards[number] = record
    lost = len(set(listed) - set(manifest.shards))
    if lost:
        say(f"{lost} shards that the manifest lists are missing or damaged; they are done again")
    return manifest


def stored_identity(destination: Destination, work: str) -> RunIdentity | None:
    """Of which run the results at a destination are; None if there are none."""
    with contextlib.suppress(DatasetError):
        stored = read_manifest(destination)
        if stored is not None:
            return stored.identity
    for name in sorted(destination.sizes(shard_folder(work))):
        number = _number(name)
        if number is not None:
            with contextlib.suppress(DatasetError):
                return read_header(destination, shard_path(work, number)).identity
    return None


def _adopt(
    manifest: Manifest, number: int, size: int, say: Callable[[str], None]
) -> ShardRecord | None:
    """The record of a shard whose file is opened; None if the file is damaged."""
    path = shard_path(manifest.identity.work, number)
    try:
        header = read_header(manifest.destination, path)
    except DatasetError as error:
        say(f"{error}; it is done again")
        return None
    if header.identity != manifest.identity or header.number != number:
        raise InputError(refusal(manifest.destination, header.identity, manifest.identity))
    if header.failures:
        manifest.failures[number] = list(header.failures)
    return ShardRecord(number, len(header.images), len(header.failures), header.rows, size)


def refusal(destination: Destination, stored: RunIdentity, identity: RunIdentity) -> str:
    """Why results of one run may not be mixed with those of another."""
    before, now = asdict(stored), asdict(identity)
    changes = [_change(name, before[name], now[name]) for name in now if before[name] != now[name]]
    return (
        f"{destination.url} has results of another run ({'; '.join(changes)}); choose another "
        "--out, or run as before"
    )


def _change(name: str, before: Any, now: Any) -> str:
    if name == "options":
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return "; ".join(_change(f"option {key}", before.get(key), now.get(key)) for key in keys)
    if name in ("source", "weights"):
        return f"the {name} changed"
    return f"{name} was {before} and is {now}"


def _number(name: str) -> int | None:
    """The number of the shard whose file is called so."""
    path = PurePosixPath(name)
    return int(path.stem) if path.suffix == ".parquet" and path.stem.isdecimal() else None


def _text(content: dict[str, Any]) -> bytes:
    """JSON with a line for each key, and for each shard."""
    shards = content["shards"]
    head = json.dumps({**content, "shards": []}, indent=1, ensure_ascii=False)
    lines = ",\n  ".join(json.dumps(each) for each in shards)
    text = head.removesuffix("[]\n}") + (f"[\n  {lines}\n ]\n}}\n" if shards else "[]\n}\n")
    return text.encode(errors="surrogateescape")
