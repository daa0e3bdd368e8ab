"""Downloaded checkpoints in the user's cache whose hash was verified once."""

from __future__ import annotations

import json
import os
from pathlib import Path

from samfast.checkpoints.hashes import file_sha256
from samfast.errors import CheckpointError
from samfast.user_cache import cache_dir


def checkpoint_dir() -> Path:
    """Where downloaded checkpoints are kept."""
    return cache_dir() / "checkpoints"


def verify(path: Path, size: int | None, sha256: str | None) -> None:
    """Raise CheckpointError unless the file has that size and that SHA-256.

    The size is compared every time; the hash only when the file is new or was changed since,
    because hashing 2.5 GB takes seconds. A small JSON file beside it remembers for which size and
    change it was right.
    """
    stat = path.stat()
    if size is not None and stat.st_size != size:
        raise CheckpointError(
            f"{path}: has {stat.st_size} bytes, not the {size} of the published checkpoint; delete "
            "it to"
            " download it again, or pass your own file as checkpoint="
        )
    if sha256 is None:
        return
    seen = {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    note = _note(path)
    try:
        if json.loads(note.read_text(encoding="utf-8")) == seen:
            return
    except (OSError, ValueError):
        pass
    found = file_sha256(path)
    if found != sha256:
        raise CheckpointError(
            f"{path}: its SHA-256 is {found}, not the published {sha256}; delete it to download it "
            "again, or"
            " pass your own file as checkpoint="
        )
    remember(path, sha256)


def remember(path: Path, sha256: str) -> None:
    """Note that this file, as it is now, has that hash. A cache that cannot be written is merely
    slower.
    """
    stat = path.stat()
    note = _note(path)
    text = json.dumps({"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    part = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, note)
    except OSError:
        part.unlink(missing_ok=True)


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".verified.json")
