"""A shard's images -> its answers, by a SamFast: everything in them, prompted objects, embeddings.

A shard is answered by itself and begins with a batch of its own, so that its answers do not depend
on the shards before it. A bad image becomes a failure and stops no other.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
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
from samfast.outputs.embeddings import embeddings_to_bytes
from samfast.prompted_masks.answer_stream import PromptedImage
from samfast.prompted_masks.prompted_objects import ObjectQuestions
from samfast.serve.embedding_store import feature_key, file_name
from samfast.serve.store_backends import backend_of

Answered = Generator[tuple[ReadEntry, DoneImage | Exception], None, None]

OUT_OF_MEMORY = "the device's memory ran out; use a smaller --batch-size or --points-per-batch"

EMBED_BATCHES = 4
"""Batches of images that are handed to the encoder together, so that it does not wait for files."""


def answer_shard(
    sam: SamFast,
    work: Work,
    number: int,
    images: Iterator[ReadEntry],
    on_image: Callable[[DoneImage | Failure], object] = lambda image: None,
) -> ShardAnswers:
    """The answers to the images of the shard of that number.

    images    iterated on another thread; its own errors, as SourceGoneError, are raised here
    on_image  called with each image as it is done

    Embeddings are written into their store; everything else is written by who called.

    >>> with read_ahead(source.reader, shard.entries, threads=8) as images:
    ...     answers = answer_shard(sam, Everything(), shard.number, images)
    """
    return _shard_answers(number, _ANSWERS[type(work)](sam, work, images), on_image)


def answer_shards(
    sam: SamFast,
    work: Work,
    shards: Sequence[Shard],
    images: Iterator[ReadEntry],
    on_image: Callable[[DoneImage | Failure], object] = lambda image: None,
) -> Generator[ShardAnswers, None, None]:
    """The answers of shards, as `answer_shard` gives them, one after the other.

    images  of all shards, in their order

    With prompts a GPU encodes the first batch of a shard while the last answers of the shard before
    are copied.
    """
    if not isinstance(work, PromptedWork):
        for shard in shards:
            of_shard = islice(images, len(shard.entries))
            yield answer_shard(sam, work, shard.number, of_shard, on_image)
        return
    last = frozenset(shard.entries[-1].key for shard in shards)
    with closing(_prompted(sam, work, images, last)) as answered:
        for shard in shards:
            yield _shard_answers(shard.number, islice(answered, len(shard.entries)), on_image)


def _shard_answers(
    number: int,
    answered: Iterator[tuple[ReadEntry, DoneImage | Exception]],
    on_image: Callable[[DoneImage | Failure], object],
) -> ShardAnswers:
    answers = ShardAnswers(number, [], [])
    for read, answer in answered:
        if isinstance(answer, DoneImage):
            answers.images.append(answer)
            on_image(answer)
        else:
            answers.failures.append(_failure(read, answer))
            on_image(answers.failures[-1])
    return answers


def _everything(sam: SamFast, work: Everything, images: Iterator[ReadEntry]) -> Answered:
    for read, answer in segment_stream(partial(sam.segment_each, **work.options), images):
        if isinstance(answer, Exception):
            yield read, answer
        else:
            yield read, _done(read, masks=list(enumerate(answer)))


def _prompted(
    sam: SamFast,
    work: PromptedWork,
    images: Iterator[ReadEntry],
    last: Collection[str] = (),
) -> Answered:
    """The answers to prompts; images of the keys `last` end a batch."""
    # What was asked about the images that are not yet answered.
    asked: deque[tuple[ReadEntry, ObjectQuestions]] = deque()

    def items() -> Iterator[PromptedImage]:
        for read in images:
            questions = ObjectQuestions.of(work.objects[read.entry.key], work.all_masks)
            asked.append((read, questions))
            yield PromptedImage(read, questions.questions, read.entry.key in last)

    answered = sam.answer_each(items(), _image_of, output_mode="coco_rle", best=not work.all_masks)
    with closing(answered):
        for each in answered:
            read, questions = asked.popleft()
            if each.error is not None:
                records = questions.records(each)
                assert isinstance(records, SamfastError)
                yield read, records
            else:
                by_object = enumerate(questions.by_object(each.answers))
                masks = [(number, record) for number, each in by_object for record in each]
                yield read, _done(read, masks, source_id=work.image_ids.get(read.entry.key))


def _image_of(read: ReadEntry, number: int) -> LoadedImage:
    if read.image is None:
        assert read.error is not None
        raise read.error
    return read.image


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
    PromptedWork: _prompted,
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
