"""Images and their prompts -> answers on the host, in order, in bounded memory.

A thread takes images and prompts and loads a batch ahead. The device encodes and decodes a batch
while the answers of the last one are copied to the host, as jobs of `samfast.device.pipeline`. An
image that fails has its error as its answer, and the stream goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from samfast.decoding.decoded_prompts import DecodedPrompts, decode_prompts
from samfast.decoding.decoder import Decoder
from samfast.device import pipeline
from samfast.device.inference_modes import inference_modes
from samfast.device.pipeline import MAX_JOBS, JobQueue
from samfast.device.prefetch import CallerIterator, prefetch
from samfast.device.retry import FEWER_IMAGES, FEWER_OBJECTS, RetryOnOOM
from samfast.device.transfer import DeviceJob
from samfast.encoding.encoder import Encoder
from samfast.errors import DeviceMemoryError, SamfastError
from samfast.images import Batcher, LoadedImage
from samfast.images.batching import already_loaded
from samfast.images.device_preprocess import batch_maker, on_device
from samfast.model.sam import Sam
from samfast.prompted_masks.host_answers import AnswerJobs
from samfast.types import Embeddings, ImageBatch, Prompts, RawImageBatch

T = TypeVar("T")

Load = Callable[[Any, int], LoadedImage]
"""Loads an image; its number in the stream is for messages."""


@dataclass(frozen=True, eq=False)
class Question:
    """Prompts of one image that are decoded together.

    multimask  three masks per object, or the one of the single-mask token
    """

    prompts: Prompts
    multimask: bool


@dataclass(frozen=True, eq=False)
class PromptedImage:
    """An image, in any form that the stream's `load` takes, and what is asked about it.

    ends_batch  the next image begins another batch, so that its answer does not depend, in its last
                bits, on the images before it
    """

    image: Any
    questions: Sequence[Question]
    ends_batch: bool = False


@dataclass(frozen=True, eq=False)
class AnsweredImage(Generic[T]):
    """An image with an answer to each question, or with the error for which it has none.

    image  None if it could not be loaded
    error  of the question at index `failed`, in which it numbers objects; None: of the image
    """

    image: LoadedImage | None
    answers: list[T]
    error: SamfastError | None = None
    failed: int | None = None


@dataclass(frozen=True, eq=False)
class _Group:
    """Images that are encoded together.

    first     the number of the first image in the stream
    images    each loaded, or the error for which it is not
    members   indices of those that are loaded and have questions, the images of `batch`
    failure   the caller's iterator failed behind these images
    """

    first: int
    items: Sequence[PromptedImage]
    images: Sequence[LoadedImage | SamfastError]
    members: Sequence[int]
    batch: ImageBatch | RawImageBatch | None
    failure: Exception | None


class AnswerStream(Generic[T]):
    """Answers to prompts for many images.

    model           whose device, input side and mask threshold are used
    encode, decode  the model's parts as a recipe runs them
    batch_size      images encoded and asked at a time
    answer_jobs     makes the answers of what was decoded
    """

    def __init__(
        self,
        model: Sam,
        encode: Encoder,
        decode: Decoder,
        batch_size: int,
        answer_jobs: AnswerJobs[T],
    ) -> None:
        self._model, self._encode, self._decode = model, encode, decode
        self._batch_size, self._answer_jobs = batch_size, answer_jobs
        self._device, self._side = model.device, model.image_encoder.img_size

    def __call__(
        self, items: Iterator[PromptedImage], load: Load, *, single: bool = False
    ) -> Generator[AnsweredImage[T], None, None]:
        """Each image's answers, in order; an error of `items` comes after the images before it.

        items   iterated on a thread, ahead of the answers
        load    called on several threads
        single  there is only one image, for which a thread costs more than it saves
        """
        source = CallerIterator(items)
        batcher = Batcher(self._side, pin=self._device.type == "cuda")
        make = batch_maker(batcher, self._device)
        groups = self._groups(source, load, batcher, make)
        if not single:
            groups = prefetch(groups, source=source)
        results = pipeline.run(partial(self._queue_groups, groups), max(MAX_JOBS, self._batch_size))
        with batcher, closing(groups), closing(results):
            while True:
                try:
                    with inference_modes(self._device):  # left before the caller's code runs
                        parts = next(results, None)
                except Exception:
                    # The caller may go on with the same iterator, so its thread is waited for.
                    source.abandonable = False
                    raise
                if parts is None:
                    return
                yield _answered(parts)

    def _groups(
        self,
        items: Iterator[PromptedImage],
        load: Load,
        batcher: Batcher,
        make: Callable[..., ImageBatch | RawImageBatch],
    ) -> Generator[_Group, None, None]:
        """The images of the stream, batch_size at a time or fewer, loaded."""
        first = 0
        more = True
        while more:
            taken: list[PromptedImage] = []
            failure = None
            full = False
            while more and not full:
                try:
                    taken.append(next(items))
                    full = len(taken) == self._batch_size or taken[-1].ends_batch
                except StopIteration:
                    more = False
                except Exception as error:  # raised when all images before are done
                    more, failure = False, error
            if taken or failure is not None:
                images = batcher.load([item.image for item in taken], load, first)
                yield self._group(first, taken, images, make, failure)
            first += len(taken)

    def _group(
        self,
        first: int,
        items: Sequence[PromptedImage],
        images: Sequence[LoadedImage | SamfastError],
        make: Callable[..., ImageBatch | RawImageBatch],
        failure: Exception | None,
    ) -> _Group:
        pixels: list[LoadedImage] = []
        members: list[int] = []
        for index, (item, image) in enumerate(zip(items, images, strict=True)):
            if isinstance(image, LoadedImage) and item.questions:
                members.append(index)
                pixels.append(image)
        batch = make(pixels, already_loaded) if pixels else None
        return _Group(first, items, images, members, batch, failure)

    def _queue_groups(self, groups: Iterator[_Group], queue: JobQueue[Any]) -> Iterator[None]:
        """Encode and decode each group; stops after each, whose jobs were started."""
        queue.deferred = _deferred(self._device)
        for group in groups:
            queue.next_batch()
            for index, (item, image) in enumerate(zip(group.items, group.images, strict=True)):
                queue.expect(group.first + index, 1 + len(item.questions))
                queue.put(group.first + index, 0, image)
                if isinstance(image, SamfastError):
                    _fail(queue, group, index, image)
            if group.batch is not None:
                self._ask_all(group, self._embed(group, group.batch, queue), queue)
            queue.current_item = group.first + len(group.items)
            if group.failure is not None:
                raise group.failure
            yield

    def _embed(
        self, group: _Group, batch: ImageBatch | RawImageBatch, queue: JobQueue[Any]
    ) -> dict[int, Tensor]:
        """The embedding (1, C, h, w) of each member; one by one where all together fail."""

        def encode(start: int, stop: int) -> Tensor:
            return self._encode(on_device(batch, self._device, slice(start, stop)))

        whole = {index: slice(i, i + 1) for i, index in enumerate(group.members)}
        try:
            retry = RetryOnOOM(FEWER_IMAGES)
            features = torch.cat([*retry.map_chunks(len(batch), self._batch_size, encode)])
            return {index: features[rows] for index, rows in whole.items()}
        except (DeviceMemoryError, torch.OutOfMemoryError) as error:
            if len(batch) == 1:
                _fail(queue, group, group.members[0], _memory_error(error, FEWER_IMAGES))
                return {}
        embedded = {}
        for index, rows in whole.items():
            try:
                embedded[index] = encode(rows.start, rows.stop)
            except torch.OutOfMemoryError as error:
                _fail(queue, group, index, _memory_error(error, FEWER_IMAGES))
        return embedded

    def _ask_all(self, group: _Group, embedded: dict[int, Tensor], queue: JobQueue[Any]) -> None:
        """Decode the questions of all images: the first ones of all together, and so on."""
        most = max((len(group.items[index].questions) for index in embedded), default=0)
        for place in range(most):
            for multimask in (False, True):
                asked = [
                    index
                    for index in embedded
                    if place < len(group.items[index].questions)
                    and group.items[index].questions[place].multimask == multimask
                ]
                if asked:
                    self._ask(group, embedded, asked, place, queue)

    def _ask(
        self,
        group: _Group,
        embedded: dict[int, Tensor],
        asked: Sequence[int],
        place: int,
        queue: JobQueue[Any],
    ) -> None:
        """Decode one question of each of some images; one by one where all together fail."""
        try:
            jobs = list(self._answer_jobs(self._decoded(group, embedded, asked, place)))
        except (SamfastError, torch.OutOfMemoryError) as error:
            if len(asked) == 1:
                queue.put(group.first + asked[0], 1 + place, _memory_error(error))
                return
            jobs = None
        if jobs is None:
            for index in asked:
                self._ask(group, embedded, [index], place, queue)
            return
        for image, job in jobs:
            number = group.first + asked[image]
            queue.start(number, _deliver(queue, number, 1 + place, job))

    def _decoded(
        self, group: _Group, embedded: dict[int, Tensor], asked: Sequence[int], place: int
    ) -> DecodedPrompts:
        questions = [group.items[index].questions[place] for index in asked]
        rows = [embedded[index] for index in asked]
        assert group.batch is not None
        sizes = dict(
            zip(
                group.members,
                zip(group.batch.original_sizes, group.batch.input_sizes, strict=True),
                strict=True,
            )
        )
        originals, inputs = zip(*(sizes[index] for index in asked), strict=True)
        # Nothing reads the fingerprint: the embeddings go no further than this stream.
        embeddings = Embeddings(
            rows[0] if len(rows) == 1 else torch.cat(rows), originals, inputs, fingerprint=""
        )
        prompts = [question.prompts for question in questions]
        numbers = [group.first + index for index in asked]
        multimask = questions[0].multimask
        return decode_prompts(self._model, self._decode, embeddings, prompts, multimask, numbers)


def _deferred(device: torch.device) -> bool:
    """Whether work is queued on the device, so that jobs wait for it while the next is queued."""
    return device.type == "cuda"


def _deliver(queue: JobQueue[Any], number: int, part: int, job: DeviceJob[Any]) -> DeviceJob[None]:
    """Put a job's answer, or its error, into the queue."""
    try:
        answer = yield from job
    except (SamfastError, torch.OutOfMemoryError) as error:
        answer = _memory_error(error)
    queue.put(number, part, answer)


def _memory_error(error: Exception, remedy: str = FEWER_OBJECTS) -> Exception:
    """The error, as DeviceMemoryError if the GPU ran out of memory."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    ours = DeviceMemoryError(f"the GPU ran out of memory: {remedy}")
    ours.__cause__ = error
    return ours


def _fail(queue: JobQueue[Any], group: _Group, index: int, error: Exception) -> None:
    """The error is the answer to all questions about an image."""
    for part in range(1, 1 + len(group.items[index].questions)):
        queue.put(group.first + index, part, error)


def _answered(parts: list[Any]) -> AnsweredImage[Any]:
    image, *answers = parts
    if isinstance(image, SamfastError):
        return AnsweredImage(None, [], image)
    for failed, error in enumerate(answers):
        if isinstance(error, SamfastError):
            return AnsweredImage(image, [], error, failed)
    return AnsweredImage(image, answers)
