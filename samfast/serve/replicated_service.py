"""ReplicatedService: a SegmentationService that is one of several, each with images of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from torch import Tensor

from samfast.engine import SamFast
from samfast.serve.batch_policy import Urgency
from samfast.serve.image_store import content_id, read_below
from samfast.serve.messages import ObjectAnswer, ObjectPrompt, StoredImage
from samfast.serve.metrics import merged
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings


class Peers(Protocol):
    """All replicas, this one included. Calls raise the ProblemError that the method raises."""

    async def call(self, image_id: str, method: str, *args: Any, **options: Any) -> Any:
        """The result of a method of the image's owner."""

    def stream(
        self, image_id: str, method: str, *args: Any, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """What a generator of the image's owner yields."""

    async def call_all(self, method: str, *args: Any) -> Mapping[str, Any]:
        """By each replica's name, the result of its method, or the ProblemError."""


class ReplicatedService(SegmentationService):
    """A SegmentationService whose images are spread over several processes.

    peers  how to reach the others

    Each image belongs to one replica, its owner, which has its file, its embedding and its masks.
    A request that names an image in its path is sent to the owner. The image of an upload is known
    only when its bytes have arrived, anywhere, and is then handed on. An owner that has no
    embedding, since another one died, reads it from the store that all share.

    The owner is called by the methods of the base class, so that nothing is handed on twice.
    """

    def __init__(self, sam: SamFast, settings: Settings, peers: Peers) -> None:
        super().__init__(sam, settings)
        self._peers = peers
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start once, however often it is called."""
        if self._starting is None:
            self._starting = asyncio.create_task(super().start())
        await asyncio.shield(self._starting)

    def _is_here(self, image_id: str) -> bool:
        """Whether this replica can answer for an image from its memory."""
        return (
            self._images.get(image_id) is not None
            or image_id in self._encoding
            or image_id in self._cache
        )

    async def _by_owner(self, image_id: str, method: str, *args: Any, **options: Any) -> Any:
        if self._is_here(image_id):
            return await getattr(SegmentationService, method)(self, *args, **options)
        return await self._peers.call(image_id, method, *args, **options)

    # ---------------------------------------------------------------------------- images

    async def add_image(
        self, data: bytes, *, client: str = "", urgency: Urgency = Urgency.UPLOAD
    ) -> StoredImage:
        image_id = await self._in_pool(content_id, data)
        image: StoredImage = await self._by_owner(
            image_id, "add_image", data, client=client, urgency=urgency
        )
        return image

    async def add_path(
        self, relative: str, *, client: str = "", urgency: Urgency = Urgency.UPLOAD
    ) -> StoredImage:
        limit = self.settings.max_image_bytes
        _, data = await self._in_pool(read_below, self.settings.root, relative, limit)
        image_id = await self._in_pool(content_id, data)
        image: StoredImage = await self._by_owner(
            image_id, "add_path", relative, client=client, urgency=urgency
        )
        return image

    async def image_bytes(self, image_id: str) -> bytes:
        data: bytes = await self._by_owner(image_id, "image_bytes", image_id)
        return data

    async def image(self, image_id: str) -> StoredImage:
        image: StoredImage = await self._by_owner(image_id, "image", image_id)
        return image

    async def remove(self, image_id: str) -> None:
        """Forget an image everywhere: a former owner has it still."""
        results = (await self._peers.call_all("remove", image_id)).values()
        problems = [each for each in results if isinstance(each, ProblemError)]
        if len(problems) == len(results):
            raise problems[0]

    # -------------------------------------------------------------------------- segmenting

    async def predict(
        self,
        image_id: str,
        objects: Sequence[ObjectPrompt],
        *,
        multimask: bool = True,
        client: str = "",
    ) -> list[ObjectAnswer]:
        answers: list[ObjectAnswer] = await self._by_owner(
            image_id, "predict", image_id, objects, multimask=multimask, client=client
        )
        return answers

    async def segment(
        self, image_id: str, options: Mapping[str, Any] | None = None, *, client: str = ""
    ) -> AsyncGenerator[dict[str, Any], None]:
        if self._is_here(image_id):
            lines = super().segment(image_id, options, client=client)
        else:
            lines = self._peers.stream(image_id, "segment", image_id, options, client=client)
        async with aclosing(lines):
            async for line in lines:
                yield line

    # -------------------------------------------------------------------------- embeddings

    async def embed(
        self, image_id: str, *, client: str = "", urgency: Urgency = Urgency.CLICK
    ) -> None:
        await self._by_owner(image_id, "embed", image_id, client=client, urgency=urgency)

    async def low_res(self, ref: str, image_id: str, *, client: str = "") -> Tensor:
        logits: Tensor = await self._by_owner(image_id, "low_res", ref, image_id, client=client)
        return logits

    async def embedding_bytes(self, image_id: str, *, client: str = "") -> bytes:
        data: bytes = await self._by_owner(image_id, "embedding_bytes", image_id, client=client)
        return data

    async def put_embedding(self, image_id: str, data: bytes) -> StoredImage:
        image: StoredImage = await self._by_owner(image_id, "put_embedding", image_id, data)
        return image

    # ---------------------------------------------------------------------------- numbers

    async def metrics_text(self) -> bytes:
        """The metrics of every replica, each with its name as the label `replica`."""
        return merged(await self._peers.call_all("metrics_text"))
