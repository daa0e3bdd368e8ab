"""Where embeddings are kept: on the device, in host memory, on disk or at a URL."""

from __future__ import annotations

import threading
from collections import OrderedDict

from samfast.serve.settings import Settings
from samfast.types import Embeddings


class EmbeddingCache:
    """Embeddings by image id, the latest within a number of bytes. Safe to use from threads."""

    def __init__(self, settings: Settings, feature_key: str) -> None:
        self._key, self._max_bytes, self._bytes = feature_key, settings.device_bytes, 0
        self._kept: OrderedDict[str, Embeddings] = OrderedDict()
        self._lock = threading.Lock()

    def in_memory(self, image_id: str) -> Embeddings | None:
        """The embedding if that takes no time."""
        with self._lock:
            found = self._kept.get(image_id)
            if found is not None:
                self._kept.move_to_end(image_id)
            return found

    def find(self, image_id: str) -> Embeddings | None:
        """The embedding from wherever it is kept; may read a disk."""
        return self.in_memory(image_id)

    def put(self, image_id: str, embedding: Embeddings) -> None:
        """Keep an embedding."""
        with self._lock:
            self._drop(image_id)
            self._kept[image_id] = embedding
            self._bytes += embedding.features.nbytes
            while self._bytes > self._max_bytes and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))

    def remove(self, image_id: str) -> bool:
        """Forget an embedding; False if it is not kept."""
        with self._lock:
            return self._drop(image_id)

    def _drop(self, image_id: str) -> bool:
        found = self._kept.pop(image_id, None)
        if found is not None:
            self._bytes -= found.features.nbytes
        return found is not None
