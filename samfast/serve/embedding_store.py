"""Embeddings in a folder or at an fsspec URL: whole or absent, checked when read, bounded in bytes.

A file is `<feature key>/<first two digits of the image's id>/<id>.safetensors`. The feature key
names the weights, the preprocessing and the recipe, so that one store serves many models. Files of
all of them count towards the bound; those that were not used for longest are removed first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from samfast.atomic_files import atomic_write
from samfast.engine import SamFast
from samfast.errors import EmbeddingsError, InputError, MissingExtraError, OutputError
from samfast.outputs.embeddings import embeddings_from_bytes, embeddings_to_bytes
from samfast.types import Embeddings

_LOG = logging.getLogger("samfast.serve")

_NAME = re.compile(r"[0-9a-f]{32}/[0-9a-f]{2}/[0-9a-f]{64}\.safetensors")

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
                f"{folder}: cannot be made: {error.strerror}; choose another folder for the store"
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
            raise MissingExtraError(
                f"a store at {url} needs fsspec: pip install 'samfast[serve]'"
            ) from error
        try:
            self._fs, self._home = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise InputError(f"--store {url}: {error}") from error
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
        except BaseException:
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
            found: list[dict[str, Any]] = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {
            str(each["name"]).rpartition("/")[2]: int(each.get("size") or 0)
            for each in found
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


def feature_key(sam: SamFast) -> str:
    """Names all that the features of an image depend on: weights, preprocessing and recipe."""
    parts = {"fingerprint": sam.fingerprint, "recipe": str(sam.recipe)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def file_name(feature_key: str, image_id: str) -> str:
    """The name of an embedding's file in a store."""
    return f"{feature_key}/{image_id[:2]}/{image_id}.safetensors"


class EmbeddingStore:
    """Embeddings in a folder or at a URL, within a number of bytes.

    backend      where the files are
    feature_key  32 hexadecimal digits that name what features depend on beside the image
    max_bytes    of all files

    A failing disk or network is logged and costs time, never an answer. Safe to use from several
    threads, and beside other processes that use the same place.

    >>> store = EmbeddingStore(backend_of("~/embeddings"), feature_key(sam), 64 << 30)
    >>> store.write(image_id, sam.embed(["photo.jpg"]).cpu())
    >>> store.read(image_id)
    """

    def __init__(self, backend: Backend, feature_key: str, max_bytes: int) -> None:
        self._backend, self._key, self._max_bytes = backend, feature_key, max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0
        try:
            known = sorted(self._backend.files(), key=lambda file: file.used)
        except OSError as error:
            raise InputError(f"the store cannot be listed: {error}") from error
        for file in known:
            if _NAME.fullmatch(file.name):
                self._count(file.name, file.size)
        self._shrink()

    @property
    def bytes(self) -> int:
        """Of all files that are known here."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, image_id: str) -> bool:
        """Whether there was an embedding when the store was last looked at."""
        return self._name(image_id) in self._sizes

    def read(self, image_id: str) -> Embeddings | None:
        """An image's embedding on the host, or None. A damaged file is removed."""
        name = self._name(image_id)
        try:
            data = self._backend.read(name)
        except OSError as error:
            _LOG.warning("the store could not be read: %s", error)
            return None
        if data is None:
            with self._lock:
                self._forget(name)
            return None
        try:
            embedding = embeddings_from_bytes(data, name)
            if len(embedding) != 1:
                raise EmbeddingsError(f"{name}: embeddings of {len(embedding)} images")
        except EmbeddingsError as error:
            _LOG.warning("removed from the store: %s", error)
            self.remove(image_id)
            return None
        with self._lock:
            self._count(name, len(data))
        return embedding

    def write(self, image_id: str, embedding: Embeddings) -> bool:
        """Keep an embedding of one image, on the host; False, and a line in the log, if that fails.

        Raises NumericsError for features that are NaN or infinite.
        """
        name, data = self._name(image_id), embeddings_to_bytes(embedding)
        if len(data) > self._max_bytes:
            return False
        try:
            self._backend.write(name, data)
        except OSError as error:
            _LOG.warning("the store could not be written: %s", error)
            return False
        with self._lock:
            self._count(name, len(data))
        self._shrink()
        return True

    def remove(self, image_id: str) -> bool:
        """Remove an embedding; False if there is none."""
        name = self._name(image_id)
        with self._lock:
            known = self._forget(name)
        try:
            self._backend.remove(name)
        except OSError as error:
            _LOG.warning("the store could not be written: %s", error)
        return known

    def _name(self, image_id: str) -> str:
        return file_name(self._key, image_id)

    def _count(self, name: str, size: int) -> None:
        self._forget(name)
        self._sizes[name] = size
        self._bytes += size

    def _forget(self, name: str) -> bool:
        size = self._sizes.pop(name, None)
        self._bytes -= size or 0
        return size is not None

    def _shrink(self) -> None:
        """Remove the files that were not used for longest until the others are within the bound."""
        while True:
            with self._lock:
                if self._bytes <= self._max_bytes or not self._sizes:
                    return
                name = next(iter(self._sizes))
                self._forget(name)
            try:
                self._backend.remove(name)
            except OSError as error:
                _LOG.warning("the store could not be written: %s", error)
