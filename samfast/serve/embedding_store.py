"""Embeddings in a folder or at an fsspec URL: whole or absent, checked when read, bounded in bytes.

A file is `<feature key>/<first two digits of the image's id>/<id>.safetensors`. The feature key
names the weights, the preprocessing and the recipe, so that one store serves many models. Files of
all of them count towards the bound; those that were not used for longest are removed first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections import OrderedDict

from samfast.engine import SamFast
from samfast.errors import EmbeddingsError, InputError
from samfast.outputs.embeddings import embeddings_from_bytes, embeddings_to_bytes
from samfast.serve.store_backends import Backend
from samfast.types import Embeddings

_LOG = logging.getLogger("samfast.serve")

_NAME = re.compile(r"[0-9a-f]{32}/[0-9a-f]{2}/[0-9a-f]{64}\.safetensors")


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
            embedding = embeddings_from_bytes(data, name, prefer_crc32=True)
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
