"""What is done with each image, and the answers that it gets. All of it can be pickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from samfast.cluster.shards import Shard
from samfast.prompted_masks.prompted_objects import Objects, PromptedObject


@dataclass(frozen=True)
class Everything:
    """All masks in each image; options of `SamFast.segment_each`."""

    options: Mapping[str, Any] = field(default_factory=dict)
    kind = "everything"

    def of(self, shard: Shard) -> Everything:
        """What of it a shard needs."""
        return self


@dataclass(frozen=True)
class PromptedWork:
    """The objects of each image, by the keys of entries; three masks each, or the best.

    image_ids  by the keys of entries, where the prompts came with ids of images
    """

    objects: Mapping[str, Objects]
    all_masks: bool = False
    image_ids: Mapping[str, Any] = field(default_factory=dict)
    kind = "prompts"

    def of(self, shard: Shard) -> PromptedWork:
        """What of it a shard needs."""
        objects = {entry.key: self.objects[entry.key] for entry in shard.entries}
        ids = {key: self.image_ids[key] for key in objects if key in self.image_ids}
        return PromptedWork(objects, self.all_masks, ids)

    @cached_property
    def text_ids(self) -> bool:
        """Whether ids of categories and annotations are texts and not only whole numbers."""
        ids = (i for each in self.objects.values() for o in each for i in _ids(o))
        return not all(isinstance(i, int) for i in ids if i is not None)

    @cached_property
    def annotation_ids(self) -> bool:
        """Whether the objects were made from annotations with ids."""
        return any(o.annotation_id is not None for each in self.objects.values() for o in each)

    @cached_property
    def digest(self) -> str:
        """Changes with the prompts."""
        digest = hashlib.sha256()
        for key in sorted(self.objects):
            parts = [
                [each.points, each.box, each.category_id, each.annotation_id]
                for each in self.objects[key]
            ]
            digest.update(json.dumps([key, self.image_ids.get(key), parts]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class EmbeddingWork:
    """An embedding of each image, in a store of `samfast serve` at that folder or URL."""

    store: str
    kind = "embeddings"

    def of(self, shard: Shard) -> EmbeddingWork:
        """What of it a shard needs."""
        return self


def _ids(prompted: PromptedObject) -> tuple[Any, Any]:
    return prompted.category_id, prompted.annotation_id


Work = Everything | PromptedWork | EmbeddingWork
"""What is done with each image. Can be pickled."""


@dataclass(frozen=True)
class DoneImage:
    """An image with its answers.

    masks      the number of an object and a record of it, for each mask; in order
    embedding  the name of its file in the store, for embeddings
    source_id  of the image, where its prompts came with one
    notes      what was changed to use the image, one sentence each
    """

    key: str
    width: int
    height: int
    masks: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    embedding: str = ""
    source_id: Any = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """An image without an answer: the name of the exception's class, and its message."""

    image: str
    error: str
    reason: str


@dataclass(frozen=True)
class ShardAnswers:
    """The answers of a shard, in the order of its entries."""

    number: int
    images: list[DoneImage]
    failures: list[Failure]
