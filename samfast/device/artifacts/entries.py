"""Entries of the user's cache that can be made again: compiled code and tuned kernels.

An entry is a JSON description (purpose, date, and versions of torch and others that made it), and
for compiled code a `.bin` file beside it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from samfast.device.machine import versions
from samfast.errors import OutputError
from samfast.user_cache import cache_dir

KINDS = ("compiled", "tuned")

_LOG = logging.getLogger("samfast")


@dataclass(frozen=True)
class Entry:
    """One entry of the cache.

    kind      "compiled": code of a recipe; "tuned": configurations of kernels
    path      its main file
    bytes     size of all its files
    date      when it was made, ISO 8601 in UTC
    device, model, recipe, batch_size
              its purpose; None if it does not depend on that
    versions  of what made it
    stale     other versions are installed now, so it will be dropped
    """

    kind: str
    path: Path
    bytes: int
    date: str
    device: str | None
    model: str | None
    recipe: str | None
    batch_size: int | None
    versions: dict[str, str | None]
    stale: bool


def folder(kind: str) -> Path:
    """Where entries of a kind are kept. It need not exist yet."""
    return cache_dir() / kind


def description(purpose: dict[str, Any], **more: Any) -> bytes:
    """The JSON description of an entry that is made now."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"for": purpose, "versions": versions(), "date": date, **more}
    return (json.dumps(about, indent=1) + "\n").encode()


def drop(files: list[Path], what: str, reason: str) -> None:
    """Delete the files of an unusable entry and log why; the first one is named."""
    try:
        for path in files:
            path.unlink(missing_ok=True)
    except OSError as error:
        reason += f" (and it cannot be deleted: {error.strerror})"
    _LOG.warning("dropped the %s %s: %s", what, files[0], reason)


def entries() -> list[Entry]:
    """All entries, compiled code first, the newest of each kind first, from their descriptions."""
    return [
        entry
        for kind in KINDS
        for entry in sorted(
            (_entry(kind, files) for files in _files(kind)), key=lambda e: e.date, reverse=True
        )
    ]


def clear() -> int:
    """Delete every entry and the leftovers of interrupted processes; returns the bytes freed.

    Checkpoints stay. Raises OutputError if a file cannot be deleted.
    """
    return sum(delete_files(folder(kind)) for kind in KINDS)


def delete_files(folder: Path) -> int:
    """Delete the files in a folder, but not its subfolders; returns the bytes freed.

    Raises OutputError if a file cannot be deleted.
    """
    freed = 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            continue
        try:
            size = path.lstat().st_size
            path.unlink()
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be deleted: {error.strerror}; delete it yourself"
            ) from error
        freed += size
    return freed


def _files(kind: str) -> Iterator[list[Path]]:
    """The files of each entry: the main one first, the description last."""
    suffixes = (".bin", ".json") if kind == "compiled" else (".json",)
    parent = folder(kind)
    paths = parent.iterdir() if parent.is_dir() else ()
    for stem in sorted({path.stem for path in paths if path.suffix in suffixes}):
        files = [parent / f"{stem}{suffix}" for suffix in suffixes]
        yield [path for path in files if path.is_file()]


def _entry(kind: str, files: list[Path]) -> Entry:
    about = _about(files[-1])
    purpose = _mapping(about.get("for")) or about
    made_by = _mapping(about.get("versions"))
    installed = versions()
    date = about.get("date") or datetime.fromtimestamp(files[0].stat().st_mtime, UTC).isoformat(
        timespec="seconds"
    )
    batch_size = purpose.get("batch_size")
    return Entry(
        kind=kind,
        path=files[0],
        bytes=sum(path.stat().st_size for path in files),
        date=str(date),
        device=_text(purpose.get("device")),
        model=_text(purpose.get("model")),
        recipe=_text(purpose.get("recipe")),
        batch_size=batch_size if isinstance(batch_size, int) else None,
        versions={str(name): _text(version) for name, version in made_by.items()},
        stale=any(installed.get(name, version) != version for name, version in made_by.items()),
    )


def _about(path: Path) -> dict[str, Any]:
    """The JSON of a description; empty if it is damaged."""
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
