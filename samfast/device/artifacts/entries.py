"""What lies in the user's cache beside checkpoints: compiled code, tuned kernels, sampled
points.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from samfast.device.artifacts import compiled_code
from samfast.device.machine import versions
from samfast.errors import OutputError
from samfast.user_cache import cache_dir

KINDS = ("compiled", "tuned", "points")


@dataclass(frozen=True)
class Entry:
    """One thing that can be made again.

    kind     "compiled": code of a recipe; "tuned": the configuration of a kernel; "points": those
             that ask for a data set's masks (`samfast.bench.sampling`)
    path     its file; bytes, with whatever belongs to it
    date     when it was made, ISO 8601 in UTC
    device, model, recipe, batch_size
             what it is for, as far as it says
    versions of what made it
    stale    other versions are installed now: it would be dropped
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


def entries() -> list[Entry]:
    """All entries, compiled code first, the newest of each kind first. Nothing is loaded or
    hashed.
    """
    found = [_entry(kind, files) for kind in KINDS for files in _files(kind)]
    newest_first = sorted(found, key=lambda entry: entry.date, reverse=True)
    return sorted(newest_first, key=lambda entry: KINDS.index(entry.kind))


def clear() -> int:
    """Delete every entry, and what an interrupted process left of one; returns the bytes freed.

    Checkpoints stay. Raises OutputError where the system refuses.
    """
    return sum(delete_files(cache_dir() / kind) for kind in KINDS)


def delete_files(folder: Path) -> int:
    """Delete the files in a folder, not its folders; returns the bytes freed. OutputError if the
    system refuses.
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
    """The files of each entry, the one that names it first."""
    folder = compiled_code.folder() if kind == "compiled" else cache_dir() / kind
    if not folder.is_dir():
        return
    if kind != "compiled":
        for path in sorted(folder.glob("*.json")):
            yield [path]
        return
    for stem in sorted(
        {path.stem for path in folder.iterdir() if path.suffix in (".bin", ".json")}
    ):
        files = (folder / f"{stem}.bin", folder / f"{stem}.json")
        yield [path for path in files if path.is_file()]


def _entry(kind: str, files: list[Path]) -> Entry:
    about = _about(files[-1])
    purpose = about.get("for")
    purpose = purpose if isinstance(purpose, dict) else about
    made = about.get("versions")
    made = made if isinstance(made, dict) else {}
    own = versions()
    stat = files[0].stat()
    batch_size = purpose.get("batch_size")
    return Entry(
        kind=kind,
        path=files[0],
        bytes=sum(path.stat().st_size for path in files),
        date=str(
            about.get("date")
            or datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds")
        ),
        device=_word(purpose.get("device")),
        model=_word(purpose.get("model")),
        recipe=_word(purpose.get("recipe")),
        batch_size=batch_size if isinstance(batch_size, int) else None,
        versions={str(name): _word(version) for name, version in made.items()},
        stale=any(own.get(name, version) != version for name, version in made.items()),
    )


def _about(path: Path) -> dict[str, Any]:
    """The JSON of an entry; nothing of one that is damaged, which loading will drop."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _word(value: object) -> str | None:
    return value if isinstance(value, str) else None
