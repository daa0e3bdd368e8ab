"""Scenes: images larger than the model's window, read tile by tile.

Beyond the methods of `SamFast`: the caches of embeddings that `predict_large` takes.
"""

from samfast.scenes.window_embeddings import EmbeddingCache, FolderCache, MemoryCache

__all__ = ["EmbeddingCache", "FolderCache", "MemoryCache"]
