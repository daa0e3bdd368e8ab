"""All shards that are left, on one device: read ahead, answered, written, listed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

from samfast.cluster.answers import ShardRequest, answer_shards, needs_ids
from samfast.cluster.manifest import Manifest
from samfast.cluster.read_ahead import READERS, READERS_BESIDE_A_CPU, read_ahead
from samfast.cluster.shard_files import ShardRecord, write_shard
from samfast.cluster.shards import shards_left
from samfast.cluster.sources import Source
from samfast.cluster.work import DoneImage, Failure, ShardAnswers, Work
from samfast.device.loaded_objects import loaded_objects_kept
from samfast.device.ordered_jobs import in_order
from samfast.engine import SamFast
from samfast.errors import OutputError

MAX_UNWRITTEN = 1
"""Shards that wait to be written, beside the one that is, while the next is answered."""

MANIFEST_SECONDS = 2.0
"""The manifest is written at most so often: its length grows with the run."""


@dataclass(frozen=True)
class Watch:
    """Who is told how a run goes on.

    on_image  called with each image that has an answer or failed, of a shard not yet written
    on_shard  called with each shard when its file is written
    """

    on_image: Callable[[DoneImage | Failure], object] = lambda image: None
    on_shard: Callable[[ShardRecord], object] = lambda record: None


NOBODY = Watch()


def run_shards(
    sam: SamFast,
    work: Work,
    source: Source,
    manifest: Manifest,
    *,
    max_failures: int | None = None,
    watch: Watch = NOBODY,
) -> bool:
    """Do the shards that the manifest does not list; False if too many images failed.

    max_failures  more failures than this, of all shards, end the run after the shard that has them

    Whatever ends the run, files of shards are whole, and the manifest lists them. Raises
    SourceGoneError where the source cannot be reached any more, OutputError where results cannot be
    written.
    """
    size = manifest.identity.shard_size
    left = list(shards_left(source.entries, size, manifest.shards))
    entries = chain.from_iterable(shard.entries for shard in left)
    threads = READERS_BESIDE_A_CPU if sam.device.type == "cpu" else READERS
    recorder = Recorder(manifest)
    ahead = read_ahead(source.reader, entries, threads, with_ids=needs_ids(work))
    with loaded_objects_kept(), recorder, ahead as images:
        if too_many(manifest, max_failures):
            return False
        requests = (
            ShardRequest(shard, work, islice(images, len(shard.entries)), watch.on_image)
            for shard in left
        )
        with closing(answer_shards(sam, requests)) as answered:
            jobs = _writing(answered, recorder, manifest, max_failures)
            # On a thread, so that the device is given work meanwhile.
            written = in_order(jobs, 1, max_waiting=MAX_UNWRITTEN, name="samfast-write")
            with closing(written):
                for record in written:
                    if isinstance(record, OutputError):
                        raise record
                    watch.on_shard(record)
    return not too_many(manifest, max_failures)


def _writing(
    answered: Iterator[ShardAnswers],
    recorder: Recorder,
    manifest: Manifest,
    max_failures: int | None,
) -> Iterator[Callable[[], ShardRecord | OutputError]]:
    """For each shard, what writes and lists it; the last is that with which too many images have
    failed.
    """

    def write(answers: ShardAnswers) -> ShardRecord | OutputError:
        try:
            record = write_shard(manifest.destination, manifest.identity, answers)
            recorder.add(record, answers.failures)
        except OutputError as error:
            return error
        return record

    failed = manifest.failed
    for answers in answered:
        failed += len(answers.failures)
        yield partial(write, answers)
        if max_failures is not None and failed > max_failures:
            return


class Recorder:
    """Lists shards in a manifest, and writes it now and then, and when the block ends."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._manifest.write()
        self._written = time.monotonic()

    def add(self, record: ShardRecord, failures: list[Failure]) -> None:
        """List a shard whose file is written."""
        self._manifest.add(record, failures)
        if time.monotonic() - self._written > MANIFEST_SECONDS:
            self._manifest.write()
            self._written = time.monotonic()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Write the manifest; where that fails too, the error that ended the block is raised."""
        with nullcontext() if kind is None else suppress(OutputError):
            self._manifest.write()


def too_many(manifest: Manifest, max_failures: int | None) -> bool:
    """Whether more images failed than may."""
    return max_failures is not None and manifest.failed > max_failures
