"""What the device's thread does with the engine: it encodes and decodes batches, and repeats one by
one where a batch fails.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from samfast.device.cuda_graphs import graph_sizes
from samfast.device.transfer import works_beside_host
from samfast.engine import SamFast
from samfast.errors import DeviceMemoryError, PromptError, SamfastError
from samfast.images import LoadedImage
from samfast.prompts import pack_objects
from samfast.prompts.validation import check
from samfast.serve.embedding_cache import EmbeddingCache
from samfast.serve.mask_refs import MaskRefs
from samfast.serve.messages import AnsweredBatch, AnsweredObjects, ObjectPrompt
from samfast.serve.problems import ProblemError
from samfast.types import Embeddings, MaskRecords, PackedPrompts, Prompts, Size

T = TypeVar("T")
R = TypeVar("R")

MAX_JOINED = 8
"""Images whose features are copied into kept memory on a CPU, 4 MiB each: as many as are decoded
together there by default."""

MAX_WARMED = 64
"""Most images of a batch that the decoder is prepared for. More are decoded in parts of so many."""


@dataclass(frozen=True, eq=False)
class DecodeRequest:
    """A request for the masks of some objects of one image.

    masks  the low-resolution logits (1, 256, 256) that each object's `mask` names, or None
    """

    image_id: str
    embedding: Embeddings
    objects: Sequence[ObjectPrompt]
    masks: Sequence[Tensor | None]
    multimask: bool


def each_or_error(
    items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]
) -> list[R | Exception]:
    """The results of a batch, or for each item that fails alone the error.

    A batch that the device's memory does not hold is split in halves; a batch with an item that
    cannot be used is repeated one by one, so that only this item fails.
    """
    try:
        return list(work(items))
    except (DeviceMemoryError, torch.OutOfMemoryError) as error:
        failure: Exception = error
        size = len(items) // 2
    except (SamfastError, RuntimeError, ValueError) as error:
        failure, size = error, 1
    if len(items) == 1:
        return [failure.with_traceback(None)]
    del failure  # its traceback holds the batch's tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    results: list[R | Exception] = []
    for start in range(0, len(items), size):
        results += each_or_error(items[start : start + size], work)
    return results


@dataclass(frozen=True, eq=False)
class EncodeRequest:
    """An image to encode. `wanted`: whether the embedding is still to be kept; it is not when the
    image has been deleted meanwhile.
    """

    image_id: str
    image: LoadedImage
    wanted: Callable[[], bool]


@dataclass(frozen=True, eq=False)
class SegmentRequest:
    """A search for everything in an image.

    options   of `SamFast.segment`
    progress  called on the device's thread between its steps with the points done and their
              total. It may run other jobs, and ends the search by raising ProblemError
    """

    image: LoadedImage
    options: Mapping[str, Any]
    progress: Callable[[int, int | None], None]


class DeviceTasks:
    """The engine's work for many callers. Call it from the device's thread only.

    refs     keeps the low-resolution masks
    cache    keeps the embeddings
    objects  most objects that are decoded together
    """

    def __init__(self, sam: SamFast, refs: MaskRefs, cache: EmbeddingCache, objects: int) -> None:
        self.sam, self._refs, self._cache, self._objects = sam, refs, cache, objects
        self.feature_shape: torch.Size | None = None
        self.feature_dtype: torch.dtype | None = None
        self._joined: Tensor | None = None

    def warm_up(self) -> None:
        """Encode and decode before the first request, which then waits for no compiler.

        On a GPU in batches of all sizes that CUDA graphs are recorded for: recording one takes a
        third of a second, and a second where its kernels are compiled.
        """
        image = torch.full((3, 480, 640), 90, dtype=torch.uint8)
        on_gpu = works_beside_host(self.sam.device)
        for size in graph_sizes(self.sam.batch_size) if on_gpu else (self.sam.batch_size,):
            embeddings = self.sam.embed([image] * size)
        one = embeddings[0]
        self.feature_shape, self.feature_dtype = one.features.shape, one.features.dtype
        for size in graph_sizes(min(self._objects, MAX_WARMED)) if on_gpu else (1,):
            self._warm_decoder(together([one] * size), True)
        self._warm_decoder(one, False)

    def _warm_decoder(self, embeddings: Embeddings, multimask: bool) -> None:
        """Decode a click on each image."""
        sizes = embeddings.original_sizes, embeddings.input_sizes
        count = len(embeddings)
        clicks, labels = [[(320.0, 240.0)]] * count, [[1]] * count
        packed = pack_objects(clicks, labels, None, None, range(count), *sizes)
        self.sam.predict_rle_batch(embeddings, [packed], multimask=multimask)

    def encode(self, requests: Sequence[EncodeRequest]) -> list[Embeddings | Exception]:
        """The embedding of each image, which is kept, or the error that it fails with alone."""
        return each_or_error(requests, self._encode)

    def _encode(self, requests: Sequence[EncodeRequest]) -> list[Embeddings]:
        together = self.sam.embed([each.image for each in requests])
        together.verify()
        # Copies: a view would keep the whole batch alive for its last image.
        embeddings = (
            [together]
            if len(together) == 1
            else [
                replace(one, features=one.features.clone())
                for one in (together[i] for i in range(len(together)))
            ]
        )
        for request, embedding in zip(requests, embeddings, strict=True):
            if request.wanted():
                self._cache.keep(request.image_id, embedding)
        return embeddings

    def segment(self, requests: Sequence[SegmentRequest]) -> list[MaskRecords | Exception]:
        """The records of each image, or its error."""
        return [each_or_error([each], self._segment)[0] for each in requests]

    def _segment(self, requests: Sequence[SegmentRequest]) -> list[MaskRecords]:
        (request,) = requests
        return self.sam.segment([request.image], progress=request.progress, **request.options)

    def copy(self, values: Sequence[Embeddings | Tensor]) -> list[Embeddings | Tensor | Exception]:
        """Embeddings or masks on the host."""
        return each_or_error(values, lambda items: [each.cpu() for each in items])

    def check(self, request: DecodeRequest) -> None:
        """ProblemError 422 for prompts that do not fit the image. May be called on any thread.

        A wrong prompt would fail its whole batch, which would then be repeated one by one.
        """
        size = request.embedding.original_sizes[0]
        for index, each in enumerate(request.objects):
            if _surely_fits(each, size):
                continue
            where = f"object {index}"
            try:
                prompts = _prompts(each, request.masks[index])
                check(prompts, size, self.sam.model.prompt_encoder.mask_input_size, where)
            except PromptError as error:
                message = str(error).replace(f"{where}, object 0", where)
                raise ProblemError(422, "bad_prompt", message) from None

    def decode(self, requests: Sequence[DecodeRequest]) -> list[AnsweredObjects | Exception]:
        """The answer to each request, or the error that it fails with alone."""
        results: dict[int, AnsweredObjects | Exception] = {}
        for multimask in (True, False):
            alike = [i for i, each in enumerate(requests) if each.multimask is multimask]
            answers = each_or_error([requests[i] for i in alike], self._decode) if alike else []
            results.update(zip(alike, answers, strict=True))
        return [results[i] for i in range(len(requests))]

    def _decode(self, requests: Sequence[DecodeRequest]) -> list[AnsweredObjects]:
        """Requests for any images, all with multimask or all without, in one call of the engine."""
        of_image = {each.image_id: each for each in requests}
        # Masks of neighbouring images of equal sizes are measured and packed in one launch.
        images = sorted(of_image.values(), key=lambda each: each.embedding.original_sizes[0])
        numbers = {each.image_id: number for number, each in enumerate(images)}
        device = self.sam.device
        embeddings = self._together([self._on(device, each) for each in images])
        kinds: dict[tuple[bool, bool, bool], list[_Asked]] = {}
        for number, request in enumerate(requests):
            image = numbers[request.image_id]
            for place, prompt in enumerate(request.objects):
                kinds.setdefault(_kinds(prompt), []).append(_Asked(image, number, place))
        groups = [sorted(objects) for objects in kinds.values()]
        packed = [_packed(requests, objects, embeddings) for objects in groups]
        asked = [each for objects in groups for each in objects]
        answers = self.sam.predict_rle_batch(embeddings, packed, multimask=requests[0].multimask)
        for request in requests:
            for prompt in request.objects:
                if prompt.mask is not None:
                    self._refs.detach(prompt.mask)
        # One random name for all: making one takes a call of the system, in which another thread
        # may take Python's lock and keep it for milliseconds.
        name = secrets.token_hex(8)
        self._refs.put(name, [requests[each.request].image_id for each in asked], answers.low_res)
        sizes = [embeddings.original_sizes[each.image] for each in asked]
        batch = AnsweredBatch(name, sizes, answers)
        rows = [[0] * len(each.objects) for each in requests]
        for row, each in enumerate(asked):
            rows[each.request][each.place] = row
        return [AnsweredObjects(batch, each) for each in rows]

    def _together(self, embeddings: Sequence[Embeddings]) -> Embeddings:
        """As `together`; on a CPU in memory that is kept, and valid until the next call: taking new
        memory from the system costs several times as much as the copy.
        """
        if not (1 < len(embeddings) <= MAX_JOINED and embeddings[0].features.is_cpu):
            return together(embeddings)
        rows = [each.features.permute(0, 2, 3, 1) for each in embeddings]
        if not all(each.is_contiguous() for each in rows):
            return together(embeddings)
        if self._joined is None or self._joined.dtype != rows[0].dtype:
            self._joined = rows[0].new_empty(MAX_JOINED, *rows[0].shape[1:])
        joined = self._joined[: len(rows)]
        # NumPy's copy on one thread is as fast as memory, whatever other threads do.
        into = joined.view(torch.uint8).numpy()
        for place, each in enumerate(rows):
            into[place] = each[0].view(torch.uint8).numpy()
        return _joined(joined.permute(0, 3, 1, 2), embeddings)

    def _on(self, device: torch.device, request: DecodeRequest) -> Embeddings:
        """A request's embedding on the device; one from the host is kept there from now on."""
        if request.embedding.features.device.type == device.type:
            return request.embedding
        moved = request.embedding.to(device)
        self._cache.keep(request.image_id, moved, write=False)
        return moved


class _Asked(NamedTuple):
    """An object: the number of its image among those of a batch, of its request, and among the
    request's objects.
    """

    image: int
    request: int
    place: int


def _kinds(prompt: ObjectPrompt) -> tuple[bool, bool, bool]:
    """Objects of one image are decoded together if these are equal."""
    return bool(prompt.points), prompt.box is not None, prompt.mask is not None


_LABELS = frozenset((0, 1))


def _surely_fits(prompt: ObjectPrompt, size: Size) -> bool:
    """Whether a prompt of points and a box fits an image of (height, width) beyond doubt. Arrays,
    as `check` makes of it, take much longer than the few comparisons of a click.
    """
    height, width = size
    if prompt.mask is not None or not (prompt.points or prompt.box):
        return False
    for x, y in prompt.points:
        if not (0 <= x <= width and 0 <= y <= height):  # NaN compares false
            return False
    if not _LABELS.issuperset(prompt.labels):
        return False
    if prompt.box is None:
        return True
    x0, y0, x1, y1 = prompt.box
    return 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def _prompts(prompt: ObjectPrompt, mask: Tensor | None) -> Prompts:
    """The prompts of one object; mask: the logits (1, 256, 256) that it refers to."""
    return Prompts(
        points=[prompt.points] if prompt.points else None,
        labels=[prompt.labels] if prompt.points else None,
        boxes=None if prompt.box is None else [prompt.box],
        masks=None if mask is None else mask[None],
    )


def _packed(
    requests: Sequence[DecodeRequest], asked: Sequence[_Asked], embeddings: Embeddings
) -> PackedPrompts:
    """The prompts of these objects, all of one kind, in the order of their images."""
    objects = [requests[each.request].objects[each.place] for each in asked]
    points, box, _ = _kinds(objects[0])
    logits = [requests[each.request].masks[each.place] for each in asked]
    masks = [each for each in logits if each is not None]
    return pack_objects(
        [each.points for each in objects] if points else None,
        [each.labels for each in objects] if points else None,
        [each.box for each in objects if each.box is not None] if box else None,
        torch.stack(masks) if masks else None,
        [each.image for each in asked],
        embeddings.original_sizes,
        embeddings.input_sizes,
    )


def together(embeddings: Sequence[Embeddings]) -> Embeddings:
    """Embeddings of one image each, on one device, as one."""
    if len(embeddings) == 1:
        return embeddings[0]
    return _joined(torch.cat([each.features for each in embeddings]), embeddings)


def _joined(features: Tensor, embeddings: Sequence[Embeddings]) -> Embeddings:
    """Features of all these embeddings with their sizes."""
    return Embeddings(
        features,
        tuple(each.original_sizes[0] for each in embeddings),
        tuple(each.input_sizes[0] for each in embeddings),
        embeddings[0].fingerprint,
    )
