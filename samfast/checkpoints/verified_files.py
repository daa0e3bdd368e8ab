"""Downloaded checkpoints in the user's cache, and the hashes that they were verified against."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from samfast.atomic_files import atomic_write
from samfast.errors import CheckpointError, OutputError
from samfast.user_cache import cache_dir


def checkpoint_dir() -> Path:
    """Where downloaded checkpoints are kept."""
    return cache_dir() / "checkpoints"


def file_sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hex digits, in constant memory; CheckpointError if unreadable."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the file"
        ) from error


def verify(path: Path, size: int, sha256: str) -> None:
    """Raise CheckpointError unless the file has this size and this SHA-256.

    The size is compared every time, the hash only if the file is new or has changed: hashing 2.5 GB
    takes seconds. A small JSON file beside the checkpoint records the size and time of change at
    the last verification.
    """
    actual = path.stat().st_size
    if actual != size:
        raise CheckpointError(
            f"{path}: has {actual} bytes, not the {size} of the published checkpoint; delete it to "
            "download it again, or pass your own file as checkpoint="
        )
    try:
        if json.loads(_record_file(path).read_text(encoding="utf-8")) == _record(path, sha256):
            return
    except (OSError, ValueError):
        pass
    digest = file_sha256(path)
    if digest != sha256:
        raise CheckpointError(
            f"{path}: its SHA-256 is {digest}, not the published {sha256}; delete it to download "
            "it again, or pass your own file as checkpoint="
        )
    remember(path, sha256)


def remember(path: Path, sha256: str) -> None:
    """Record that the file, as it is now, has this hash. Failing to write only costs time."""
    with suppress(OutputError):
        atomic_write(_record_file(path), json.dumps(_record(path, sha256)).encode())


def _record(path: Path, sha256: str) -> dict[str, str | int]:
    stat = path.stat()
    return {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _record_file(path: Path) -> Path:
    return path.with_name(path.name + ".verified.json")
