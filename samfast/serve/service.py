"""SegmentationService: one engine for any number of callers on one event loop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from samfast.engine import SamFast
from samfast.errors import ImageError, ImageSizeError, SamfastError
from samfast.images import LoadedImage, load_bytes
from samfast.serve.batch_policy import BatchPolicy, Job, Operation, QueueFullError, Urgency
from samfast.serve.device_tasks import DecodeRequest, DeviceTasks
from samfast.serve.device_worker import DeviceWorker
from samfast.serve.embedding_cache import EmbeddingCache
from samfast.serve.image_store import ImageStore, content_id, read_below
from samfast.serve.mask_refs import MaskRefs
from samfast.serve.messages import ObjectAnswer, ObjectPrompt, StoredImage
from samfast.serve.problems import ProblemError, draining, not_found, overloaded, too_large
from samfast.serve.settings import Settings
from samfast.types import Embeddings

T = TypeVar("T")


@dataclass(eq=False)
class _Work:
    """What a job of the device's thread does, and who waits for the result on the event loop."""

    task: Any
    future: asyncio.Future[Any]


@dataclass(frozen=True, eq=False)
class _Everything:
    """A search for everything in an image. `found` is called on the device's thread, with a record
    or with a number of points done of all.
    """

    image: LoadedImage
    options: Mapping[str, Any]
    found: Callable[[dict[str, Any]], None]
    left: Callable[[], bool]


class _CallerLeft(Exception):  # noqa: N818 - not an error: it ends work that nobody waits for
    """Raised on the device's thread, between two steps of a search whose caller has left."""


class SegmentationService:
    """Images, clicks and everything, for any number of callers of one event loop.

    sam       the engine; after `start` nothing else may use it
    settings  its limits

    Methods raise ProblemError, which has an HTTP status, and nothing else on a caller's mistake.
    Images are named by an id, the SHA-256 of their bytes. `client` says whose turn it is: callers
    with different ones are served in turn.

    >>> service = SegmentationService(samfast.load("vit_xs"), Settings())
    >>> await service.start()
    >>> image = await service.add_image(Path("photo.jpg").read_bytes())
    >>> click = ObjectPrompt(points=((320, 240),), labels=(1,))
    >>> (answer,) = await service.predict(image.id, [click])
    >>> answer.best().rle()
    """

    def __init__(self, sam: SamFast, settings: Settings) -> None:
        self.sam, self.settings = sam, settings
        self.ready = False
        self._draining = False
        self._images = ImageStore(settings.image_bytes)
        self._refs = MaskRefs(settings.mask_bytes)
        self._tasks = DeviceTasks(sam, self._refs)
        self._embeddings = EmbeddingCache(settings, feature_key(sam))
        self._encoding: dict[str, Job[_Work]] = {}
        self._pool = ThreadPoolExecutor(
            max(2, min(8, os.cpu_count() or 2)), thread_name_prefix="samfast-host"
        )
        self._uploads = asyncio.Semaphore(settings.max_uploads)
        policy = BatchPolicy[_Work](
            {
                Operation.DECODE: settings.batch_objects,
                Operation.ENCODE: settings.batch_images or sam.batch_size,
                Operation.SEGMENT: 1,
            },
            max_queued=settings.max_queued,
            max_wait=settings.max_wait_seconds,
        )
        self._worker = DeviceWorker(policy, self._run, self._tasks.warm_up)

    # ------------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Start the device's thread; returns when the model has answered its first click."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()
        await asyncio.wrap_future(self._worker.warm)
        self.ready = True

    async def drain(self) -> None:
        """Refuse what is new, answer what was accepted, and end the threads."""
        self._draining = True
        self.ready = False
        await asyncio.to_thread(self._worker.stop, self.settings.drain_seconds)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ---------------------------------------------------------------------------- images

    async def add_image(
        self, data: bytes, *, client: str = "", urgency: Urgency = Urgency.UPLOAD
    ) -> StoredImage:
        """Take an image file's bytes, and begin to embed it.

        Returns when the image is decoded. ProblemError: 413 for too many bytes or pixels, 422 for
        what is no image, 429 if too many images wait.
        """
        return await self._add(data, data, client, urgency)

    async def add_path(
        self, relative: str, *, client: str = "", urgency: Urgency = Urgency.UPLOAD
    ) -> StoredImage:
        """As `add_image`, of a file below the server's root."""
        limit = self.settings.max_image_bytes
        path, data = await self._in_pool(read_below, self.settings.root, relative, limit)
        return await self._add(data, path, client, urgency)

    async def image_bytes(self, image_id: str) -> bytes:
        """An image's file as it came; ProblemError 404 if it is not here any more."""
        return await self._in_pool(self._images.read, image_id)

    async def image(self, image_id: str) -> StoredImage:
        """What is known of an image, from its embedding too; ProblemError 404 for nothing."""
        known = self._images.get(image_id)
        if known is None:
            found = await self._in_pool(self._embeddings.find, image_id)
            if found is None:
                raise not_found(f"image {image_id} is not here; upload it (again)")
            height, width = found.original_sizes[0]
            known = StoredImage(image_id, width, height)
        return known

    async def remove(self, image_id: str) -> None:
        """Forget an image, its embedding and its masks; ProblemError 404 if it is not known."""
        job = self._encoding.pop(image_id, None)
        if job is not None:
            self._worker.discard(job)
            job.payload.future.cancel()
        self._refs.remove(image_id)
        known = self._images.remove(image_id)
        kept = await self._in_pool(self._embeddings.remove, image_id)
        if not (known or kept or job is not None):
            raise not_found(f"image {image_id} is not here")

    # -------------------------------------------------------------------------- segmenting

    async def predict(
        self,
        image_id: str,
        objects: Sequence[ObjectPrompt],
        *,
        multimask: bool = True,
        client: str = "",
    ) -> list[ObjectAnswer]:
        """The masks of each object.

        multimask  three masks for each object, or the single-mask token's one

        ProblemError: 404 for an unknown image or mask, 413 for too many objects or points, 422 for
        prompts that do not fit the image, 429 if too many requests wait, 503 where the device's
        memory does not suffice.
        """
        self._check_objects(objects)
        masks = [
            None if each.mask is None else self._refs.get(each.mask, image_id) for each in objects
        ]
        if not objects:
            await self.image(image_id)
            return []
        embedding = await self.embedding(image_id, client=client)
        request = DecodeRequest(image_id, embedding, tuple(objects), masks, multimask)
        answers: list[ObjectAnswer] = await self._submit(
            Operation.DECODE, Urgency.CLICK, len(objects), client, request
        )
        return answers

    async def segment(
        self, image_id: str, options: Mapping[str, Any] | None = None, *, client: str = ""
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Everything in an image: progress as {"done": points, "total": points}, then a record for
        each mask, with the original generator's keys.

        options  of `SamFast.segment`

        Clicks of others are answered between the steps of the search, which ends early if the
        generator is closed. ProblemError as `predict`.
        """
        data = await self.image_bytes(image_id)
        image = await self._in_pool(self._decode, data)
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        left = False

        def found(line: dict[str, Any]) -> None:
            self._loop.call_soon_threadsafe(lines.put_nowait, line)

        everything = _Everything(image, dict(options or {}), found, lambda: left)
        work = asyncio.ensure_future(
            self._submit(Operation.SEGMENT, Urgency.BULK, 1, client, everything)
        )
        work.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None:
                yield line
            for record in await work:
                yield record
        finally:
            left = True
            work.cancel()

    async def embedding(
        self, image_id: str, *, client: str = "", urgency: Urgency = Urgency.CLICK
    ) -> Embeddings:
        """An image's embedding, from wherever it is kept, or encoded now."""
        found = self._embeddings.in_memory(image_id)
        if found is not None:
            return found
        job = self._encoding.get(image_id)
        if job is None:
            found = await self._in_pool(self._embeddings.find, image_id)
            if found is not None:
                return found
            data = await self.image_bytes(image_id)
            image = await self._in_pool(self._decode, data)
            job = self._encode(image_id, image, client, urgency)
        else:
            self._worker.promote(job, urgency)
        # Others may wait for the same embedding: one that leaves does not cancel it.
        embedding: Embeddings = await asyncio.shield(job.payload.future)
        return embedding

    def low_res(self, ref: str, image_id: str) -> Tensor:
        """The low-resolution logits (1, 256, 256) of a mask, on the model's device.

        ProblemError 404 if they are of another image, or gone.
        """
        return self._refs.get(ref, image_id)

    # --------------------------------------------------------------------------- plumbing

    async def _add(
        self, data: bytes, source: bytes | Path, client: str, urgency: Urgency
    ) -> StoredImage:
        if self._draining:
            raise draining()
        if len(data) > self.settings.max_image_bytes:
            raise too_large(f"the image has more than {self.settings.max_image_bytes} bytes")
        image_id = await self._in_pool(content_id, data)
        known = self._images.get(image_id)
        if known is not None:
            return known
        async with self._uploads:
            loaded = await self._in_pool(self._decode, data)
        height, width = loaded.size
        image = StoredImage(image_id, width, height)
        if (
            self._embeddings.in_memory(image_id) is None
            and image_id not in self._encoding
            and await self._in_pool(self._embeddings.find, image_id) is None
        ):
            self._encode(image_id, loaded, client, urgency)
        self._images.put(image, source)
        return image

    def _decode(self, data: bytes) -> LoadedImage:
        try:
            return load_bytes(data, "the image", self.settings.max_image_pixels)
        except ImageSizeError as error:
            raise too_large(str(error)) from None
        except ImageError as error:
            raise ProblemError(422, "bad_image", str(error)) from None

    def _encode(
        self, image_id: str, image: LoadedImage, client: str, urgency: Urgency
    ) -> Job[_Work]:
        """Let an image wait for the encoder, once however many ask for it."""
        job = self._encoding.get(image_id)
        if job is not None:
            return job
        job = self._job(Operation.ENCODE, urgency, 1, client, image)
        self._encoding[image_id] = job

        def done(future: asyncio.Future[Any]) -> None:
            if self._encoding.get(image_id) is job:
                del self._encoding[image_id]
            if not future.cancelled() and future.exception() is None:
                embedding: Embeddings = future.result()
                self._embeddings.put(image_id, embedding)

        job.payload.future.add_done_callback(done)
        return job

    def _check_objects(self, objects: Sequence[ObjectPrompt]) -> None:
        if self._draining:
            raise draining()
        if len(objects) > self.settings.max_objects:
            raise too_large(f"{len(objects)} objects; at most {self.settings.max_objects}")
        points = sum(len(each.points) for each in objects)
        if points > self.settings.max_points:
            raise too_large(f"{points} points; at most {self.settings.max_points}")
        for index, each in enumerate(objects):
            if len(each.points) != len(each.labels):
                raise ProblemError(
                    422,
                    "bad_prompt",
                    f"object {index}: {len(each.points)} points and {len(each.labels)} labels",
                )

    def _job(
        self, operation: Operation, urgency: Urgency, cost: int, client: str, task: Any
    ) -> Job[_Work]:
        """Submit a job; ProblemError if the queue is full or the server ends."""
        if self._draining:
            raise draining()
        work = _Work(task, self._loop.create_future())
        job = Job(operation, urgency, cost, client, time.monotonic(), work)
        try:
            self._worker.submit(job)
        except QueueFullError as error:
            raise overloaded(error.retry_after) from None
        return job

    async def _submit(
        self, operation: Operation, urgency: Urgency, cost: int, client: str, task: Any
    ) -> Any:
        """The result of a job; one whose caller is cancelled is dropped."""
        job = self._job(operation, urgency, cost, client, task)
        try:
            return await job.payload.future
        except asyncio.CancelledError:
            self._worker.discard(job)
            raise

    async def _in_pool(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)

    # ---------------------------------------------------------------- on the device's thread

    def _run(self, jobs: list[Job[_Work]]) -> None:
        jobs = [job for job in jobs if not job.cancelled]
        if not jobs:
            return
        results: Sequence[Any]
        try:
            if jobs[0].operation is Operation.DECODE:
                results = self._tasks.decode([job.payload.task for job in jobs])
            elif jobs[0].operation is Operation.ENCODE:
                results = self._tasks.encode([job.payload.task for job in jobs])
            else:
                results = [self._everything(job.payload.task) for job in jobs]
        except Exception as error:
            self._settle(jobs, [error] * len(jobs))
            raise
        self._settle(jobs, results)

    def _everything(self, task: _Everything) -> Any:
        def progress(done: int, total: int | None) -> None:
            if task.left():
                raise _CallerLeft
            task.found({"done": done, "total": total})
            self._worker.run_waiting(Operation.DECODE, Operation.ENCODE)

        try:
            return self.sam.segment([task.image], progress=progress, **task.options)[0]
        except (SamfastError, _CallerLeft) as error:
            return error

    def _settle(self, jobs: Sequence[Job[_Work]], results: Sequence[Any]) -> None:
        """Hand results to those who wait for them, on their event loop, all in one step."""

        def settle() -> None:
            for job, result in zip(jobs, results, strict=True):
                future = job.payload.future
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(_problem(result))
                    future.exception()  # seen, also if the caller has left
                else:
                    future.set_result(result)

        self._loop.call_soon_threadsafe(settle)


def feature_key(sam: SamFast) -> str:
    """Names all that the features of an image depend on: weights, preprocessing and recipe."""
    parts = {"fingerprint": sam.fingerprint, "recipe": str(sam.recipe)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _problem(error: Exception) -> ProblemError:
    """The engine's error as what a request is refused with."""
    from samfast.errors import DeviceMemoryError, InputError, PromptError

    if isinstance(error, ProblemError):
        return error
    if isinstance(error, PromptError):
        return ProblemError(422, "bad_prompt", str(error))
    if isinstance(error, ImageError):
        return ProblemError(422, "bad_image", str(error))
    if isinstance(error, InputError):
        return ProblemError(422, "bad_request", str(error))
    if isinstance(error, DeviceMemoryError | MemoryError) or "out of memory" in str(error):
        return ProblemError(503, "out_of_memory", str(error), retry_after=5)
    return ProblemError(500, "internal_error", "the server failed; its log says why")
