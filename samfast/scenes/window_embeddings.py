"""Embeddings of windows, kept by what is seen in them, so that a second question costs a decode."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from samfast.errors import EmbeddingsError, OutputError
from samfast.outputs.embeddings import load_embeddings, save_embeddings
from samfast.types import Embeddings

DEFAULT_BYTES = 256 << 20
"""Of a MemoryCache: 64 float32 embeddings of 4 MiB."""


class EmbeddingCache(Protocol):
    """A place that keeps embeddings of single windows by a key of their content."""

    def get(self, key: str) -> Embeddings | None:
        """Those of the key, on the host or the model's device, or None."""
        ...

    def put(self, key: str, embeddings: Embeddings) -> None:
        """Keep them, or not: a cache may forget."""
        ...


def content_key(fingerprint: str, rgb: NDArray[np.uint8]) -> str:
    """The key of an (H, W, 3) image under a model: a SHA-256 of both."""
    digest = hashlib.sha256(f"{fingerprint} {rgb.shape}".encode())
    digest.update(np.ascontiguousarray(rgb).data)
    return digest.hexdigest()


class MemoryCache:
    """Keeps the embeddings used last, in memory.

    max_bytes  of their features

    >>> cache = MemoryCache()
    >>> sam.predict_large("scene.tif", prompts, cache=cache)
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._kept: OrderedDict[str, Embeddings] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Embeddings | None:
        """Those of the key, or None."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: str, embeddings: Embeddings) -> None:
        """Keep them, and forget those that were not used for the longest time."""
        if key in self._kept:
            return
        self._kept[key] = embeddings
        self._bytes += embeddings.features.nbytes
        while self._bytes > self._max_bytes and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.features.nbytes


class FolderCache:
    """Keeps embeddings as files of a folder, which several processes may share. Nothing is removed.

    A file that is damaged is written again.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error

    def get(self, key: str) -> Embeddings | None:
        """Those of the key, or None."""
        path = self._path(key)
        try:
            return load_embeddings(path) if path.is_file() else None
        except EmbeddingsError:
            return None

    def put(self, key: str, embeddings: Embeddings) -> None:
        """Write them; OutputError if that fails."""
        save_embeddings(embeddings, self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
