"""The images of shards -> their answers: everything in them, prompted objects, embeddings.

A shard is answered by itself and begins with a batch of its own, so that its answers do not depend
on the shards before it. A bad image becomes a failure and stops no other.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from samfast.automatic_masks.segment_stream import segment_stream
from samfast.cluster.read_ahead import ReadEntry
from samfast.cluster.shards import Shard
from samfast.cluster.work import (
    DoneImage,
    EmbeddingWork,
    Everything,
    Failure,
    PromptedWork,
    ShardAnswers,
    Work,
)
from samfast.engine import SamFast
from samfast.errors import OutputError, SamfastError
from samfast.images import LoadedImage
from samfast.images.batching import already_loaded
from samfast.outputs.embeddings import embeddings_to_bytes
from samfast.prompted_masks.answer_stream import PromptedImage
from samfast.prompted_masks.prompted_objects import ObjectQuestions
from samfast.serve.embedding_store import feature_key, file_name
from samfast.serve.store_backends import backend_of

Answered = Generator[tuple[ReadEntry, DoneImage | Exception], None, None]

OUT_OF_MEMORY = "the device's memory ran out; use a smaller --batch-size or --points-per-batch"

EMBED_BATCHES = 4
"""Batches of images that are handed to the encoder together, so that it does not wait for files."""


@dataclass(frozen=True, eq=False)
class ShardRequest:
    """A shard to answer.

    work      what is done with its images
    images    its entries, read, in order; may be iterated on another thread. Its own errors, as
              SourceGoneError, are raised where the answers are taken
    on_image  called with each image as it is done
    """

    shard: Shard
    work: Work
    images: Iterator[ReadEntry]
    on_image: Callable[[DoneImage | Failure], object] = lambda image: None


def answer_shards(
    sam: SamFast, requests: Iterator[ShardRequest]
) -> Generator[ShardAnswers, None, None]:
    """The answers of shards, one after the other.

    requests  all of one run; the next one is asked for, on another thread, when the images of the
              one before were taken

    With prompts a GPU encodes the first batch of a shard while the last answers of the shard before
    are copied. Embeddings are written into their store; everything else is written by the caller.

    >>> with read_ahead(source.reader, shard.entries, 8, with_ids=needs_ids(work)) as images:
    ...     (answers,) = answer_shards(sam, iter([ShardRequest(shard, work, images)]))
    """
    for first in requests:
        if isinstance(first.work, PromptedWork):
            yield from _prompted_shards(sam, first.work.all_masks, chain([first], requests))
        else:
            answered = _ANSWERS[type(first.work)](sam, first.work, first.images)
            yield _shard_answers(first, answered)


def needs_ids(work: Work) -> bool:
    """Whether entries must be read with their `image_id`, which embeddings are named by."""
    return isinstance(work, EmbeddingWork)


def _shard_answers(
    request: ShardRequest, answered: Iterable[tuple[ReadEntry, DoneImage | Exception]]
) -> ShardAnswers:
    answers = ShardAnswers(request.shard.number, [], [])
    for read, answer in answered:
        if isinstance(answer, DoneImage):
            answers.images.append(answer)
            request.on_image(answer)
        else:
            answers.failures.append(_failure(read, answer))
            request.on_image(answers.failures[-1])
    return answers


def _everything(sam: SamFast, work: Everything, images: Iterator[ReadEntry]) -> Answered:
    for read, answer in segment_stream(partial(sam.segment_each, **work.options), images):
        if isinstance(answer, Exception):
            yield read, answer
        else:
            yield read, _done(read, masks=list(enumerate(answer)))


def _prompted_shards(
    sam: SamFast, all_masks: bool, requests: Iterator[ShardRequest]
) -> Generator[ShardAnswers, None, None]:
    """The answers to the prompts of all shards, whose images are one stream."""
    # The shards whose last image has no answer yet, and the work of the images that have none.
    begun: deque[ShardRequest] = deque()
    asked: deque[tuple[ReadEntry, PromptedWork, ObjectQuestions]] = deque()

    def items() -> Iterator[PromptedImage]:
        for request in requests:
            assert isinstance(request.work, PromptedWork)
            begun.append(request)
            count = len(request.shard.entries)
            for number, read in enumerate(request.images, 1):
                objects = request.work.objects[read.entry.key]
                questions = ObjectQuestions.of(objects, all_masks)
                asked.append((read, request.work, questions))
                image = read.error if read.image is None else read.image
                yield PromptedImage(image, questions.questions, ends_batch=number == count)

    def answers() -> Answered:
        for each in stream:
            read, work, questions = asked.popleft()
            if each.error is not None:
                records = questions.records(each)
                assert isinstance(records, SamfastError)
                yield read, records
            else:
                by_object = enumerate(questions.by_object(each.answers))
                masks = [(number, record) for number, each in by_object for record in each]
                yield read, _done(read, masks, source_id=work.image_ids.get(read.entry.key))

    stream = sam.answer_each(items(), already_loaded, output_mode="coco_rle", best=not all_masks)
    with closing(stream):
        answered = answers()
        for first in answered:
            request = begun.popleft()
            after = islice(answered, len(request.shard.entries) - 1)
            yield _shard_answers(request, chain([first], after))


def _embeddings(sam: SamFast, work: EmbeddingWork, images: Iterator[ReadEntry]) -> Answered:
    backend, key = backend_of(work.store), feature_key(sam)
    for chunk in _chunks(images, EMBED_BATCHES * sam.batch_size):
        encoded = iter(_embedded(sam, [each.image for each in chunk if each.image is not None]))
        for read in chunk:
            answer = read.error if read.image is None else next(encoded)
            assert answer is not None
            if isinstance(answer, Exception):
                yield read, answer
                continue
            name = file_name(key, read.image_id)
            try:
                backend.write(name, answer)
            except OutputError:
                raise
            except OSError as error:
                raise OutputError(f"{work.store}: {name} cannot be written: {error}") from error
            yield read, _done(read, embedding=name)


def _chunks(images: Iterator[ReadEntry], size: int) -> Iterator[list[ReadEntry]]:
    chunk: list[ReadEntry] = []
    for each in images:
        chunk.append(each)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _embedded(sam: SamFast, images: list[LoadedImage]) -> list[bytes | Exception]:
    """The file of each image's embedding, or the error that it failed with."""
    if not images:
        return []
    try:
        embeddings = sam.embed(images).cpu()
        return [embeddings_to_bytes(embeddings[number]) for number in range(len(images))]
    except SamfastError as error:
        if len(images) == 1:
            return [error]
        return [each for image in images for each in _embedded(sam, [image])]


_ANSWERS: dict[type, Callable[[SamFast, Any, Iterator[ReadEntry]], Answered]] = {
    Everything: _everything,
    EmbeddingWork: _embeddings,
}


def _done(
    read: ReadEntry,
    masks: Iterable[tuple[int, dict[str, Any]]] = (),
    *,
    embedding: str = "",
    source_id: Any = None,
) -> DoneImage:
    assert read.image is not None
    height, width = read.image.size
    notes = read.image.notes
    return DoneImage(read.entry.key, width, height, list(masks), embedding, source_id, notes)


def _failure(read: ReadEntry, error: Exception) -> Failure:
    """Why an image failed, without its name: the engine numbers images, and results name them."""
    key = read.entry.key
    if not isinstance(error, SamfastError):
        # PyTorch's own message has numbers that differ each time.
        return Failure(key, "DeviceMemoryError", OUT_OF_MEMORY)
    reason = " ".join(str(error).removeprefix(f"{key}: ").split())
    return Failure(key, type(error).__name__, re.sub(r"^image \d+(, |: )", "", reason))
