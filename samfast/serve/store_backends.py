"""Where a store keeps its files: a folder, or a URL of fsspec. A file is whole or absent."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from samfast.atomic_files import atomic_write
from samfast.errors import InputError, MissingExtraError, OutputError

STALE_SECONDS = 24 * 3600
"""Age from which a temporary file of a writer that was killed is removed from a URL."""

WHOLE_PUT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "memory"})
"""Protocols of fsspec under which a file appears whole when it was sent, and never before."""


class StoredFile(NamedTuple):
    """A file of a store: its name in the store, its bytes, and when it was last used."""

    name: str
    size: int
    used: float


class Backend(Protocol):
    """Where a store keeps its files. Any method may raise OSError."""

    def files(self) -> Iterator[StoredFile]:
        """All files of embeddings."""

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None if there is none. Marks it as used."""

    def write(self, name: str, data: bytes) -> None:
        """Make a file appear, whole."""

    def remove(self, name: str) -> None:
        """Remove a file; nothing if there is none."""


class Folder:
    """A folder on a disk. The time of a file's last use is its time of modification."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot be made: {error.strerror}; choose another folder"
            ) from error

    def files(self) -> Iterator[StoredFile]:
        for path in self._folder.glob("*/*/*.safetensors"):
            with contextlib.suppress(OSError):
                status = path.stat()
                name = path.relative_to(self._folder).as_posix()
                yield StoredFile(name, status.st_size, status.st_mtime)

    def read(self, name: str) -> bytes | None:
        path = self._folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)


class Remote:
    """A URL that fsspec understands. Last use is not kept there: it begins with the writing."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtraError(f"{url} needs fsspec: pip install 'samfast[serve]'") from error
        try:
            self._fs, self._home = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise InputError(f"{url}: {error}") from error
        protocols = self._fs.protocol
        names = {protocols} if isinstance(protocols, str) else set(protocols)
        self._puts_whole = bool(names & WHOLE_PUT)

    def files(self) -> Iterator[StoredFile]:
        try:
            files: dict[str, dict[str, Any]] = self._fs.find(self._home, detail=True)
        except FileNotFoundError:
            return
        for path, details in files.items():
            name = path.removeprefix(self._home.rstrip("/")).lstrip("/")
            used = _timestamp(details)
            if name.endswith(".tmp") and time.time() - used > STALE_SECONDS:
                with contextlib.suppress(OSError):
                    self._fs.rm_file(path)
            else:
                yield StoredFile(name, int(details.get("size") or 0), used)

    def read(self, name: str) -> bytes | None:
        try:
            data: bytes = self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if self._puts_whole:
            self._fs.pipe_file(path, data)
            return
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        temporary = f"{path}.{secrets.token_hex(8)}.tmp"
        try:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, path)
        except BaseException:  # no half file stays, whatever ended the write
            with contextlib.suppress(OSError):
                self._fs.rm_file(temporary)
            raise

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def sizes(self, folder: str) -> dict[str, int]:
        """The files in a folder and their bytes; none if there is no such folder."""
        self._fs.invalidate_cache()
        try:
            items: list[dict[str, Any]] = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {
            str(each["name"]).rpartition("/")[2]: int(each.get("size") or 0)
            for each in items
            if each.get("type") != "directory"
        }

    def _path(self, name: str) -> str:
        return f"{self._home.rstrip('/')}/{name}"


def _timestamp(details: dict[str, Any]) -> float:
    """When a file of fsspec was written: each file system calls it otherwise."""
    for key in ("mtime", "modified", "LastModified", "last_modified", "updated", "created"):
        value = details.get(key)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, datetime):
            return value.timestamp()
    return time.time()


def backend_of(url: str) -> Backend:
    """The backend of a folder or a URL."""
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    return Remote(url) if "://" in url else Folder(Path(url).expanduser())
