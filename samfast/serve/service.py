"""SegmentationService: one engine for any number of callers on an event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from samfast.engine import SamFast
from samfast.errors import EmbeddingsError, ImageError, ImageSizeError, InputError
from samfast.images import LoadedImage, load_bytes
from samfast.outputs.embeddings import embeddings_from_bytes, embeddings_to_bytes
from samfast.serve.batch_policy import BatchPolicy, Job, Operation, Urgency
from samfast.serve.device_queue import DeviceQueue, FutureTicket, Ticket
from samfast.serve.device_tasks import (
    DecodeRequest,
    DeviceTasks,
    EncodeRequest,
    SegmentRequest,
)
from samfast.serve.embedding_cache import EmbeddingCache
from samfast.serve.embedding_store import EmbeddingStore, feature_key
from samfast.serve.image_store import ImageStore, content_id, read_below
from samfast.serve.mask_refs import MaskRefs
from samfast.serve.messages import AnsweredObjects, ObjectAnswer, ObjectPrompt, StoredImage
from samfast.serve.metrics import Metrics
from samfast.serve.problems import ProblemError, draining, not_found, overloaded, too_large
from samfast.serve.settings import Settings
from samfast.serve.store_backends import backend_of
from samfast.types import Embeddings

T = TypeVar("T")

_LOG = logging.getLogger("samfast.serve")

PREWARM_AT_ONCE = 4
"""Images of all prewarm lists that are read and encoded at once."""

PREWARM_LISTS = 16
"""Lists that may be worked on at once."""


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
        self.metrics = Metrics(sam.device)
        self.ready = self._draining = False
        self._images = ImageStore(settings.image_bytes)
        self._refs = MaskRefs(settings.mask_bytes)
        self.metrics.watch_masks(lambda: self._refs.bytes)
        store = None
        if settings.store is not None:
            backend = backend_of(settings.store)
            store = EmbeddingStore(backend, feature_key(sam), settings.store_bytes)
        self._cache = EmbeddingCache(
            sam.device, settings.device_bytes, settings.host_bytes, store, self.metrics
        )
        objects = settings.batch_objects or (8 if sam.device.type == "cpu" else 64)
        self._tasks = DeviceTasks(sam, self._refs, self._cache, objects)
        self._encoding: dict[str, Job[FutureTicket]] = {}
        self._waiting_pixels = 0
        self._prewarming: set[asyncio.Task[None]] = set()
        self._prewarm_slots = asyncio.Semaphore(PREWARM_AT_ONCE)
        self._uploads = asyncio.Semaphore(settings.max_uploads)
        self._pool = ThreadPoolExecutor(
            max(2, min(8, os.cpu_count() or 2)), thread_name_prefix="samfast-host"
        )
        self._queue = DeviceQueue(
            {
                Operation.DECODE: self._tasks.decode,
                Operation.ENCODE: self._tasks.encode,
                Operation.SEGMENT: self._tasks.segment,
                Operation.COPY: self._tasks.copy,
            },
            BatchPolicy(
                {
                    Operation.DECODE: objects,
                    Operation.ENCODE: settings.batch_images or sam.batch_size,
                    Operation.SEGMENT: 1,
                    Operation.COPY: 16,
                },
                max_queued={
                    Urgency.CLICK: settings.max_queued,
                    Urgency.UPLOAD: max(1, settings.max_queued // 2),
                    Urgency.BULK: max(1, settings.max_queued // 4),
                },
                max_wait=settings.max_wait_seconds,
            ),
            self._tasks.warm_up,
            self.metrics,
        )

    # ------------------------------------------------------------------------------ life

    @property
    def failed(self) -> bool:
        """The model could not be started, or has failed many times in a row: start again."""
        return self._queue.failed

    async def start(self) -> None:
        """Start the device's thread; returns when the model has answered its first click.

        Requests may come before that, and wait. Raises the error of a model that cannot run.
        """
        start = time.perf_counter()
        try:
            await asyncio.wrap_future(self._queue.start())
        except Exception:  # the operator sees the cause, the caller the error
            _LOG.exception("the model could not be started")
            raise
        self.ready = not self._draining
        _LOG.info("ready", extra={"seconds": round(time.perf_counter() - start, 3)})

    async def drain(self) -> None:
        """Refuse what is new, answer what was accepted, write what was kept, end the threads."""
        self._draining, self.ready = True, False
        for task in self._prewarming:
            task.cancel()
        done = await asyncio.to_thread(self._queue.stop, self.settings.drain_seconds)
        if not done:
            _LOG.warning("the device did not finish within %g s", self.settings.drain_seconds)
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._cache.close)

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
            embedding = await self._in_pool(self._cache.find, image_id)
            if embedding is None:
                raise not_found(f"image {image_id} is not here; upload it (again)")
            height, width = embedding.original_sizes[0]
            known = StoredImage(image_id, width, height)
        return known

    async def remove(self, image_id: str) -> None:
        """Forget an image, its embedding and its masks; ProblemError 404 if it is not known."""
        job = self._encoding.pop(image_id, None)
        if job is not None:
            self._queue.discard(job)
        self._refs.remove(image_id)
        known = self._images.remove(image_id)
        kept = await self._in_pool(self._cache.remove, image_id)
        if not (known or kept or job is not None):
            raise not_found(f"image {image_id} is not here")

    async def prewarm(
        self, *, ids: Sequence[str] = (), paths: Sequence[str] = (), client: str = ""
    ) -> None:
        """Embed images when nobody clicks: known ones, and files below the root.

        Returns at once. ProblemError 413 for too many, 429 for too many lists. An image that cannot
        be embedded is named in the log.
        """
        if self._draining:
            raise draining()
        count = len(ids) + len(paths)
        if count > self.settings.max_prewarm:
            raise too_large(f"{count} images; at most {self.settings.max_prewarm} in a list")
        if paths and self.settings.root is None:
            raise ProblemError(
                403, "no_root", "this server takes no paths; it was started without --root"
            )
        if len(self._prewarming) >= PREWARM_LISTS:
            raise overloaded(30)
        task = asyncio.ensure_future(self._prewarm(tuple(ids), tuple(paths), client))
        self._prewarming.add(task)
        task.add_done_callback(self._prewarming.discard)

    async def _prewarm(self, ids: Sequence[str], paths: Sequence[str], client: str) -> None:
        async def one(path: str | None, image_id: str) -> None:
            async with self._prewarm_slots:
                while True:
                    try:
                        if path is not None:
                            stored = await self.add_path(path, client=client, urgency=Urgency.BULK)
                            image_id = stored.id
                        await self.embed(image_id, client=client, urgency=Urgency.BULK)
                        return
                    except ProblemError as error:
                        if error.status != 429:
                            _LOG.warning("not embedded ahead: %s", error)
                            return
                    await asyncio.sleep(1)

        todo = [(None, each) for each in ids] + [(each, "") for each in paths]
        for start in range(0, len(todo), PREWARM_AT_ONCE):
            chunk = todo[start : start + PREWARM_AT_ONCE]
            await asyncio.gather(*(one(path, image_id) for path, image_id in chunk))

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
        masks = self._masks_of(objects, image_id)
        if not objects:
            await self.image(image_id)
            return []
        embedding = await self.embedding(image_id, client=client)
        request = DecodeRequest(image_id, embedding, tuple(objects), masks, multimask)
        return await self._decoded(request, client)

    def begin_predict(
        self,
        image_id: str,
        objects: Sequence[ObjectPrompt],
        settle: Callable[[AnsweredObjects | Exception], None],
        *,
        multimask: bool = True,
        client: str = "",
    ) -> Callable[[], object] | None:
        """As `predict`, if it can begin at once: if the embedding is in memory, as it is for most
        clicks. There is no task and no future, which take longer than all else that is done here.

        settle   called later on this event loop, with the answer or a ProblemError
        returns  what drops the request, after which `settle` is not called; None if it cannot begin
        """
        embedding = self._cache.in_memory(image_id)
        if embedding is None or not objects:
            return None
        self._check_objects(objects)
        masks = self._masks_of(objects, image_id)
        request = DecodeRequest(image_id, embedding, objects, masks, multimask)
        self._tasks.check(request)
        ticket = Ticket(request, asyncio.get_running_loop(), settle)
        job = self._queue.submit(Operation.DECODE, Urgency.CLICK, len(objects), client, ticket)
        return partial(self._queue.discard, job)

    async def _decoded(self, request: DecodeRequest, client: str) -> list[ObjectAnswer]:
        """The answer to each object of a request."""
        self._tasks.check(request)
        answered: AnsweredObjects = await self._queue.run(
            Operation.DECODE, Urgency.CLICK, len(request.objects), client, request
        )
        return answered.answers()

    async def predict_pixels(
        self,
        image_id: str,
        image: LoadedImage,
        objects: Sequence[ObjectPrompt],
        *,
        multimask: bool = True,
        client: str = "",
    ) -> list[ObjectAnswer]:
        """As `predict`, of pixels that are no file, such as a window of a scene.

        image_id  names them: equal for equal pixels and a SHA-256. Their embedding is kept as those
                  of files are
        """
        self._check_objects(objects)
        masks = self._masks_of(objects, image_id)
        embedding = await self._in_pool(self._cache.find, image_id)
        if embedding is None:
            self._check_waiting_pixels()
            job = self._encode(image_id, image, client, Urgency.CLICK)
            encoded: Embeddings = await asyncio.shield(job.payload.future)
            embedding = encoded
        request = DecodeRequest(image_id, embedding, tuple(objects), masks, multimask)
        return await self._decoded(request, client)

    def _masks_of(self, objects: Sequence[ObjectPrompt], image_id: str) -> list[Tensor | None]:
        """The low-resolution logits that prompts refer to; ProblemError 404 for unknown ones."""
        return [
            None if each.mask is None else self._refs.get(each.mask, image_id) for each in objects
        ]

    async def segment(
        self, image_id: str, options: Mapping[str, Any] | None = None, *, client: str = ""
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Everything in an image: progress as {"done": points, "total": points}, then a record for
        each mask, with the original generator's keys.

        options  of `SamFast.segment`

        Clicks of others are answered between the steps of the search, which ends early if the
        generator is closed. ProblemError as `predict`.
        """
        self._check_grid(options or {})
        data = await self.image_bytes(image_id)
        image = await self._decode(data)
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop, limit = asyncio.get_running_loop(), self.settings.segment_seconds
        end = time.monotonic() + limit
        left = False

        def progress(done: int, total: int | None) -> None:
            if left:
                raise ProblemError(499, "client_left", "the client has left")
            if time.monotonic() > end:
                raise ProblemError(504, "too_slow", f"not found within {limit:g} s")
            loop.call_soon_threadsafe(lines.put_nowait, {"done": done, "total": total})
            self._queue.run_waiting(Operation.DECODE, Operation.ENCODE, Operation.COPY)

        request = SegmentRequest(image, dict(options or {}), progress)
        work = asyncio.ensure_future(
            self._queue.run(Operation.SEGMENT, Urgency.BULK, 1, client, request)
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

    # -------------------------------------------------------------------------- embeddings

    async def embedding(
        self, image_id: str, *, client: str = "", urgency: Urgency = Urgency.CLICK
    ) -> Embeddings:
        """An image's embedding, from wherever it is kept, or encoded now."""
        kept = self._cache.in_memory(image_id)
        if kept is not None:
            return kept
        job = self._encoding.get(image_id)
        if job is None:
            kept = await self._in_pool(self._cache.find, image_id)
            if kept is not None:
                return kept
            data = await self.image_bytes(image_id)
            job = self._encode(image_id, await self._decode(data), client, urgency)
        elif urgency is Urgency.CLICK:
            self._queue.promote(job, urgency)
        # Others may wait for the same embedding: one that leaves does not cancel it.
        embedding: Embeddings = await asyncio.shield(job.payload.future)
        return embedding

    async def embed(
        self, image_id: str, *, client: str = "", urgency: Urgency = Urgency.CLICK
    ) -> None:
        """Return when an image is embedded. ProblemError 404 for an image that is not here."""
        await self.embedding(image_id, client=client, urgency=urgency)

    async def low_res(self, ref: str, image_id: str, *, client: str = "") -> Tensor:
        """The low-resolution logits (1, 256, 256) of a mask, in host memory.

        ProblemError 404 if they are of another image, or gone.
        """
        logits = self._refs.get(ref, image_id)
        host: Tensor = await self._queue.run(Operation.COPY, Urgency.CLICK, 1, client, logits)
        return host

    async def embedding_bytes(self, image_id: str, *, client: str = "") -> bytes:
        """An image's embedding as a file of `samfast.save_embeddings`, for a client to hold."""
        embedding = await self.embedding(image_id, client=client)
        host = await self._queue.run(Operation.COPY, Urgency.CLICK, 1, client, embedding)
        return await self._in_pool(embeddings_to_bytes, host)

    async def put_embedding(self, image_id: str, data: bytes) -> StoredImage:
        """Take back an embedding that `embedding_bytes` gave out. One that is here already stays.

        ProblemError 422 for a damaged one, or one of other weights, preprocessing or dtype.
        """
        if self._draining:
            raise draining()
        embedding = await self._in_pool(self._parse_embedding, data)
        height, width = embedding.original_sizes[0]
        image = StoredImage(image_id, width, height)
        known = self._images.get(image_id)
        if known is not None and known != image:
            raise ProblemError(
                422, "bad_embedding", f"the image has {known.width} x {known.height} pixels"
            )
        if await self._in_pool(self._cache.find, image_id) is None:
            self._cache.keep_on_host(image_id, embedding)
            self._cache.write(image_id, embedding)
        return image

    def _parse_embedding(self, data: bytes) -> Embeddings:
        if self._tasks.feature_shape is None:
            raise ProblemError(503, "not_ready", "the model is warming up", retry_after=2)
        try:
            embedding = embeddings_from_bytes(data, "the embedding")
        except EmbeddingsError as error:
            raise ProblemError(422, "bad_embedding", str(error)) from None
        if (
            embedding.fingerprint != self.sam.fingerprint
            or embedding.features.shape != self._tasks.feature_shape
            or embedding.features.dtype != self._tasks.feature_dtype
        ):
            raise ProblemError(
                422, "bad_embedding", "it is of another model, dtype or number of images"
            )
        return embedding

    # ---------------------------------------------------------------------------- numbers

    async def metrics_text(self) -> bytes:
        """What `/metrics` tells."""
        return await asyncio.to_thread(self.metrics.text)

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
        loaded = await self._decode(data)
        height, width = loaded.size
        image = StoredImage(image_id, width, height)
        if (
            image_id not in self._encoding
            and await self._in_pool(self._cache.find, image_id) is None
        ):
            self._encode(image_id, loaded, client, urgency)
        self._images.put(image, source)
        return image

    async def _decode(self, data: bytes) -> LoadedImage:
        """The pixels of an image file; ProblemError 413, 422, or 429 if too many pixels wait."""
        self._check_waiting_pixels()
        async with self._uploads:
            return await self._in_pool(self._load, data)

    def _check_waiting_pixels(self) -> None:
        if self._waiting_pixels > self.settings.pixel_bytes:
            self.metrics.refused.labels("pixels").inc()
            raise overloaded(5)

    def _load(self, data: bytes) -> LoadedImage:
        try:
            with self.metrics.stage("load_image"):
                return load_bytes(data, "the image", self.settings.max_image_pixels)
        except ImageSizeError as error:
            raise too_large(str(error)) from None
        except ImageError as error:
            raise ProblemError(422, "bad_image", str(error)) from None

    def _encode(
        self, image_id: str, image: LoadedImage, client: str, urgency: Urgency
    ) -> Job[FutureTicket]:
        """Let an image wait for the encoder, once however many ask for it."""
        job = self._encoding.get(image_id)
        if job is not None:
            return job
        request = EncodeRequest(image_id, image, lambda: image_id in self._encoding)
        job = self._queue.submit_task(Operation.ENCODE, urgency, 1, client, request)
        self.metrics.lookups.labels("encoded").inc()
        self._encoding[image_id] = job
        self._waiting_pixels += image.pixels.nbytes

        def done(future: asyncio.Future[Any]) -> None:
            self._waiting_pixels -= image.pixels.nbytes
            if self._encoding.get(image_id) is job:
                del self._encoding[image_id]

        job.payload.future.add_done_callback(done)
        return job

    def _check_grid(self, options: Mapping[str, Any]) -> None:
        """ProblemError for a search of too many clicks, or of options that do not fit."""
        try:
            points = self.sam.provenance.automatic_options(options).point_count
        except (InputError, TypeError) as error:
            raise ProblemError(422, "bad_request", str(error)) from None
        if points > self.settings.max_grid_points:
            raise too_large(f"{points} clicks; at most {self.settings.max_grid_points}")

    def _check_objects(self, objects: Sequence[ObjectPrompt]) -> None:
        if self._draining:
            raise draining()
        if len(objects) > self.settings.max_objects:
            raise too_large(f"{len(objects)} objects; at most {self.settings.max_objects}")
        points = 0
        for each in objects:
            points += len(each.points)
        if points > self.settings.max_points:
            raise too_large(f"{points} points; at most {self.settings.max_points}")
        for index, each in enumerate(objects):
            if len(each.points) != len(each.labels):
                raise ProblemError(
                    422,
                    "bad_prompt",
                    f"object {index}: {len(each.points)} points and {len(each.labels)} labels",
                )

    async def _in_pool(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)
