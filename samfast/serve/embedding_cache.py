"""Where embeddings are kept: on the device, in host memory, in a store. The nearest one answers."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import torch

from samfast.serve.embedding_store import EmbeddingStore
from samfast.serve.metrics import Metrics
from samfast.types import Embeddings

_LOG = logging.getLogger("samfast.serve")

MAX_WRITES = 64
"""Embeddings that wait to be written. Beyond, a slow store is left out instead of waited for."""


class _Tier:
    """The latest embeddings within a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self.kept: OrderedDict[str, Embeddings] = OrderedDict()

    def get(self, image_id: str) -> Embeddings | None:
        embedding = self.kept.get(image_id)
        if embedding is not None:
            self.kept.move_to_end(image_id)
        return embedding

    def put(self, image_id: str, embedding: Embeddings) -> list[tuple[str, Embeddings]]:
        """Keep an embedding; returns those that were dropped for it, or itself if too large."""
        self.drop(image_id)
        self.kept[image_id] = embedding
        self.bytes += embedding.features.nbytes
        dropped = []
        while self.bytes > self.max_bytes:
            oldest, last = next(iter(self.kept.items()))
            self.drop(oldest)
            dropped.append((oldest, last))
        return dropped

    def drop(self, image_id: str) -> bool:
        embedding = self.kept.pop(image_id, None)
        self.bytes -= 0 if embedding is None else embedding.features.nbytes
        return embedding is not None


class EmbeddingCache:
    """Embeddings by image id in up to three tiers; what one drops, the next one has.

    device        of the model; on a CPU it is the host, and there is one tier of memory
    device_bytes, host_bytes   the bounds of both
    store         the last tier, or None

    `keep` copies from the device and must be called on its thread; the others may be called from
    any thread.
    """

    def __init__(
        self,
        device: torch.device,
        device_bytes: int,
        host_bytes: int,
        store: EmbeddingStore | None,
        metrics: Metrics,
    ) -> None:
        one = device.type == "cpu"
        self._device = None if one else _Tier(device_bytes)
        self._host = _Tier(device_bytes + host_bytes if one else host_bytes)
        self._store, self._metrics = store, metrics
        self._lock = threading.Lock()
        self._removed: set[str] = set()
        self._writes = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="samfast-store")
        metrics.watch_tiers(self.tier_bytes)

    def __contains__(self, image_id: str) -> bool:
        """Whether the embedding is in memory; this is no use of it."""
        with self._lock:
            tiers = (self._device, self._host)
            return any(tier is not None and image_id in tier.kept for tier in tiers)

    def in_memory(self, image_id: str) -> Embeddings | None:
        """The embedding if no disk need be read."""
        with self._lock:
            for name, tier in (("device", self._device), ("host", self._host)):
                embedding = None if tier is None else tier.get(image_id)
                if embedding is not None:
                    self._metrics.lookups_of(name).inc()
                    return embedding
        return None

    def find(self, image_id: str) -> Embeddings | None:
        """The embedding from wherever it is kept; may read a disk or a network."""
        embedding = self.in_memory(image_id)
        if embedding is not None or self._store is None:
            return embedding
        with self._metrics.stage("store_read"):
            embedding = self._store.read(image_id)
        if embedding is not None:
            self._metrics.lookups.labels("store").inc()
            self.keep_on_host(image_id, embedding)
        return embedding

    def keep(self, image_id: str, embedding: Embeddings, *, write: bool = True) -> None:
        """Keep an embedding that is on the device. Call it on the device's thread.

        write  into the store too
        """
        if self._device is not None:
            with self._lock:
                dropped = self._device.put(image_id, embedding)
            for each, old in dropped:
                self.keep_on_host(each, old.cpu())
        host = embedding.cpu() if write and self._store is not None else embedding
        if self._device is None:
            self.keep_on_host(image_id, host)
        if write:
            self.write(image_id, host)

    def keep_on_host(self, image_id: str, embedding: Embeddings) -> None:
        """Keep an embedding that is on the host."""
        with self._lock:
            self._host.put(image_id, embedding)

    def write(self, image_id: str, embedding: Embeddings) -> None:
        """Write an embedding on the host into the store, later, on a thread."""
        store = self._store
        if store is None:
            return
        with self._lock:
            self._removed.discard(image_id)
            if self._writes >= MAX_WRITES:
                self._metrics.store_skips.inc()
                return
            self._writes += 1

        def write() -> None:
            try:
                with self._metrics.stage("store_write"):
                    store.write(image_id, embedding)
                with self._lock:
                    removed = image_id in self._removed
                if removed:
                    store.remove(image_id)
            # A full disk or a lost network must not end the server: the embedding stays in memory.
            except Exception:
                _LOG.exception("an embedding could not be written")
            finally:
                with self._lock:
                    self._writes -= 1

        self._writer.submit(write)

    def remove(self, image_id: str) -> bool:
        """Forget an embedding in every tier; False if it was in none."""
        with self._lock:
            in_memory = [
                tier.drop(image_id) for tier in (self._device, self._host) if tier is not None
            ]
            if self._store is not None and self._writes:
                self._removed.add(image_id)  # it may be waiting to be written
            elif not self._writes:
                self._removed.clear()
        stored = self._store is not None and self._store.remove(image_id)
        return any(in_memory) or stored

    def close(self) -> None:
        """Wait until what was kept is written."""
        self._writer.shutdown()

    def tier_bytes(self) -> dict[str, int]:
        """Bytes in each tier."""
        tiers = {"host": self._host.bytes}
        if self._device is not None:
            tiers["device"] = self._device.bytes
        if self._store is not None:
            tiers["store"] = self._store.bytes
        return tiers
