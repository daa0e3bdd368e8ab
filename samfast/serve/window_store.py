"""The store of a server as the cache of a scene's windows: a window is found by what it shows."""

from __future__ import annotations

from samfast.serve.embedding_store import EmbeddingStore
from samfast.types import Embeddings


class WindowStore:
    """Hands the embeddings of windows to a store, and gets them from it.

    A server over the same store answers in these windows without the encoder.

    >>> cache = WindowStore(EmbeddingStore(backend_of(url), feature_key(sam), 64 << 30))
    >>> sam.embed_large("scene.tif", cache)
    """

    def __init__(self, store: EmbeddingStore) -> None:
        self.store = store

    def get(self, key: str) -> Embeddings | None:
        """Those of the key, on the host, or None."""
        return self.store.read(key)

    def put(self, key: str, embeddings: Embeddings) -> None:
        """Keep them; a store that fails says so in the log, and costs no answer."""
        self.store.write(key, embeddings)
