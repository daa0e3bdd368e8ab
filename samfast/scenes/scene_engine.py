"""What scenes need of `SamFast`."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

from samfast.images import LoadedImage
from samfast.types import Embeddings, MaskRecords, Masks, Prompts


class SceneEngine(Protocol):
    """The part of `SamFast` that tiles and windows are answered by; see there."""

    @property
    def image_size(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def segment_each(
        self, images: Iterator[LoadedImage], **options: Any
    ) -> Generator[MaskRecords, None, None]:
        """As `SamFast.segment_each`."""
        ...

    def embed(self, images: Sequence[LoadedImage]) -> Embeddings:
        """As `SamFast.embed`."""
        ...

    def predict(
        self, embeddings: Embeddings, prompts: Sequence[Prompts], *, multimask: bool = True
    ) -> list[Masks]:
        """As `SamFast.predict`."""
        ...
