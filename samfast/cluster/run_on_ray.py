"""All shards that are left, on the devices of a Ray cluster, by Ray Data.

A row of the dataset is a shard. An actor for each device reads, decodes and answers it and writes
its file; the driver, and nobody else, lists it in the manifest. Ray starts actors again that die,
and repeats their shards, whose files get the same bytes.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from PIL import Image

import samfast
from samfast.cluster.answers import ShardRequest, needs_ids
from samfast.cluster.destination import Destination
from samfast.cluster.manifest import Manifest
from samfast.cluster.read_ahead import read_ahead
from samfast.cluster.run_identity import EngineIdentity, engine_identity, versions
from samfast.cluster.run_shards import NOBODY, Recorder, Watch, too_many
from samfast.cluster.shard_files import ShardRecord, write_shard
from samfast.cluster.shard_stream import ShardStream
from samfast.cluster.shards import RunIdentity, Shard, shards_left
from samfast.cluster.sources import Reader, Source
from samfast.cluster.work import DoneImage, Failure, Work
from samfast.device.loaded_objects import keep_loaded_objects
from samfast.errors import InputError, SamfastError

SHARDS_AT_ONCE = 3
"""In an actor: one is answered while the images of the next are read and a file is written."""


@dataclass(frozen=True)
class Workers:
    """How many actors there are, and what each has.

    count     actors; a device each
    num_gpus  0 on CPUs
    num_cpus  that Ray keeps for an actor
    readers   threads of an actor that read and decode images
    """

    count: int
    num_gpus: int
    num_cpus: int
    readers: int


def remote_identity(ray: Any, model: Mapping[str, Any], workers: Workers) -> EngineIdentity:
    """The identity of the engine, as an actor has it: the driver need not have a GPU.

    model  the arguments of `samfast.load`

    Raises the SamfastError of a model that cannot be loaded.
    """
    actor = ray.remote(num_gpus=workers.num_gpus, num_cpus=workers.num_cpus)(_Prober).remote()
    try:
        identity, there = ray.get(actor.identity.remote(dict(model)))
    except SamfastError as error:  # Ray's, which is one too; its cause is the one that was raised
        raise getattr(error, "cause", error) from None
    finally:
        ray.kill(actor)
    if there != versions():
        raise InputError(f"the cluster has {there}, and this machine {versions()}; install one")
    assert isinstance(identity, EngineIdentity)
    return identity


class _Prober:
    """An actor that loads the model as those do that answer."""

    def identity(self, model: dict[str, Any]) -> tuple[EngineIdentity, str]:
        return engine_identity(samfast.load(**model)), versions()


def run_on_ray(
    model: Mapping[str, Any],
    workers: Workers,
    work: Work,
    source: Source,
    manifest: Manifest,
    *,
    max_failures: int | None = None,
    watch: Watch = NOBODY,
) -> bool:
    """Do the shards that the manifest does not list; False if too many images failed.

    model  the arguments of `samfast.load`

    Ray must be connected, as `samfast.ray_cluster` does. As `run_shards` otherwise; `on_image` is
    called when the shard of an image is written.

    >>> with ray_cluster("local", "my program"):
    ...     run_on_ray({"name": "vit_b"}, Workers(4, 1, 8, 8), Everything(), source, manifest)
    """
    results = _results(model, workers, work, source, manifest)
    with Recorder(manifest) as recorder, closing(results):
        if too_many(manifest, max_failures):
            return False
        for result in results:
            for image in result.images:
                watch.on_image(image)
            failures = [each for each in result.images if isinstance(each, Failure)]
            recorder.add(result.record, failures)
            watch.on_shard(result.record)
            if too_many(manifest, max_failures):
                return False
    return True


@dataclass(frozen=True)
class _ShardResult:
    """What an actor tells of a shard whose file is written: its images without their masks."""

    record: ShardRecord
    images: list[DoneImage | Failure]


def _results(
    model: Mapping[str, Any], workers: Workers, work: Work, source: Source, manifest: Manifest
) -> Generator[_ShardResult, None, None]:
    """The results of shards as they are done; raises what ended an actor's work."""
    import ray
    from ray.util.client import ray as client

    left = shards_left(source.entries, manifest.identity.shard_size, manifest.shards)
    rows = [{"shard": pickle.dumps((shard, work.of(shard)))} for shard in left]
    if not rows:
        return
    parts = (manifest.identity, manifest.destination, source.reader, workers.readers)
    constructor = (dict(model), *parts, Image.MAX_IMAGE_PIXELS)
    if not client.is_connected():  # type: ignore[no-untyped-call]
        yield from _answered(rows, constructor, workers)
        return
    # Ray Data needs a process of the cluster, which a client of "ray://" is not.
    dataset: Any = ray.remote(num_cpus=0)(_Dataset).remote(rows, constructor, workers)
    try:
        while (result := _unpacked(ray.get(dataset.take.remote()))) is not None:
            yield result
    finally:
        ray.kill(dataset)


class _Dataset:
    """An actor that hands out the results of shards as they are done, and then None."""

    def __init__(self, *args: Any) -> None:
        self._results = _answered(*args)

    def take(self) -> bytes:
        try:
            return pickle.dumps(next(self._results, None))
        except SamfastError as error:
            return pickle.dumps(error.with_traceback(None))


def _unpacked(data: bytes) -> _ShardResult | None:
    """What an actor has pickled; its error is raised."""
    result: _ShardResult | SamfastError | None = pickle.loads(data)
    if isinstance(result, SamfastError):
        raise result
    return result


def _answered(
    rows: list[dict[str, bytes]], constructor: tuple[Any, ...], workers: Workers
) -> Iterator[_ShardResult]:
    """The results of shards by Ray Data, in a process of the cluster."""
    from ray.data import ActorPoolStrategy, DataContext, from_items

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    # A block is what Ray hands to an actor, and repeats when the actor dies: one shard.
    shards = from_items(rows, override_num_blocks=len(rows))
    answered = shards.map_batches(
        ShardWorker,
        fn_constructor_args=constructor,
        batch_size=1,
        compute=ActorPoolStrategy(
            size=min(workers.count, len(rows)),
            max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
            max_tasks_in_flight_per_actor=SHARDS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_gpus=workers.num_gpus,
        num_cpus=workers.num_cpus,
    )
    for row in answered.iter_rows():
        result = _unpacked(row["result"])
        assert result is not None
        yield result


class ShardWorker:
    """Answers shards with an engine of its own and writes their files.

    model     the arguments of `samfast.load`
    identity  of the run; an engine that does not fit it answers nothing

    The others say how to read images, and where the results are written. `max_pixels` is Pillow's
    limit in the driver.
    """

    def __init__(
        self,
        model: dict[str, Any],
        identity: RunIdentity,
        destination: Destination,
        reader: Reader,
        readers: int,
        max_pixels: int | None,
    ) -> None:
        Image.MAX_IMAGE_PIXELS = max_pixels
        self._identity, self._destination = identity, destination
        self._reader, self._readers = reader, readers
        self._sam = samfast.load(**model)
        self._check()
        self._stream = ShardStream(self._sam)
        keep_loaded_objects()

    def _check(self) -> None:
        """Ray fails the run with the error of a constructor."""
        engine = engine_identity(self._sam)
        wanted = self._identity
        for name in ("model", "weights", "recipe", "settings", "device"):
            if getattr(engine, name) != getattr(wanted, name):
                raise InputError(
                    f"a node of the cluster has the {name} {getattr(engine, name)}, and the run "
                    f"{getattr(wanted, name)}; give all nodes the same"
                )
        if versions() != wanted.versions:
            raise InputError(f"a node has {versions()}, and the run {wanted.versions}")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """Do the shard of the only row; what ends the run is a result too, for Ray would retry."""
        shard, work = pickle.loads(batch["shard"][0])
        try:
            result: _ShardResult | SamfastError = self._do(shard, work)
        except SamfastError as error:
            result = error.with_traceback(None)
        return {"result": [pickle.dumps(result)]}

    def _do(self, shard: Shard, work: Work) -> _ShardResult:
        images: list[DoneImage | Failure] = []
        ids = needs_ids(work)
        with read_ahead(self._reader, shard.entries, self._readers, with_ids=ids) as ahead:
            # Reading begins while the device answers another shard.
            read = chain(list(islice(ahead, 1)), ahead)
            answers = self._stream.answer(ShardRequest(shard, work, read, images.append))
        record = write_shard(self._destination, self._identity, answers)
        return _ShardResult(record, [_counted(each) for each in images])


def _counted(image: DoneImage | Failure) -> DoneImage | Failure:
    """An image that says how many masks it has, and no more of them."""
    if isinstance(image, Failure):
        return image
    return replace(image, masks=[(number, {}) for number, _ in image.masks])
