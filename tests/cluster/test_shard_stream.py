"""Shards of several threads: one stream while one waits, with the answers of each alone."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from samfast.cluster.answers import ShardRequest, answer_shards, needs_ids
from samfast.cluster.read_ahead import ReadEntry, read_entry
from samfast.cluster.shard_stream import ShardStream
from samfast.cluster.shards import Shard, shards_left
from samfast.cluster.sources import Source, open_source
from samfast.cluster.work import Everything, PromptedWork, ShardAnswers, Work
from samfast.engine import SamFast
from samfast.errors import SourceGoneError
from samfast.prompted_masks.prompted_objects import PromptedObject
from tests.serve.running import tiny_engine

BOX = PromptedObject(box=(5, 5, 40, 30))


@pytest.fixture
def source(photos: Path) -> Source:
    return open_source(str(photos))


@pytest.fixture
def work(source: Source) -> PromptedWork:
    """A box in each of the photos."""
    return PromptedWork({entry.key: (BOX,) for entry in source.entries})


@pytest.fixture
def shards(source: Source) -> list[Shard]:
    """Four shards of seven photos."""
    return list(shards_left(source.entries, 2, {}))


@pytest.fixture
def sam() -> SamFast:
    return tiny_engine(batch_size=2)


@pytest.fixture
def streams(sam: SamFast, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """As many items as streams of prompts were begun."""
    begun: list[None] = []
    answer_each = sam.answer_each

    def counted(*args, **options):
        begun.append(None)
        return answer_each(*args, **options)

    monkeypatch.setattr(sam, "answer_each", counted)
    return begun


def request(
    source: Source,
    work: Work,
    shard: Shard,
    before: Callable[[], object] = lambda: None,
) -> ShardRequest:
    """A request for a shard; `before` is called before its first image is read."""

    def images() -> Iterator[ReadEntry]:
        before()
        for entry in shard.entries:
            yield read_entry(source.reader, entry, with_id=needs_ids(work))

    return ShardRequest(shard, work.of(shard), images())


def asked_at_once(
    sam: SamFast, source: Source, work: Work, shards: list[Shard]
) -> list[Future[ShardAnswers]]:
    """The shards, each asked for by a thread of its own before the first image is read."""
    stream = ShardStream(sam)
    all_wait = threading.Event()
    first = request(source, work, shards[0], lambda: all_wait.wait(30))
    with ThreadPoolExecutor(len(shards)) as pool:
        answers = [pool.submit(stream.answer, first)]
        wait_until(lambda: stream._thread._work_queue.empty() and not stream._waiting)
        for number, shard in enumerate(shards[1:], 1):
            answers.append(pool.submit(stream.answer, request(source, work, shard)))
            wait_until(lambda: len(stream._waiting) == number)  # noqa: B023
        all_wait.set()
    return answers


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def alone(sam: SamFast, source: Source, work: Work, shard: Shard) -> ShardAnswers:
    (answers,) = answer_shards(sam, iter([request(source, work, shard)]))
    return answers


def test_shards_that_wait_are_answered_in_one_stream(sam, source, work, shards, streams):
    expected = [alone(sam, source, work, shard) for shard in shards]
    del streams[:]
    answers = asked_at_once(sam, source, work, shards)
    assert [each.result() for each in answers] == expected
    assert len(streams) == 1


def test_no_answer_waits_for_a_shard_that_does_not_come(sam, source, work, shards, streams):
    stream = ShardStream(sam)
    answers = [stream.answer(request(source, work, shard)) for shard in shards]
    assert len(streams) == len(shards)
    assert answers == [alone(sam, source, work, shard) for shard in shards]


def test_shards_of_everything_are_answered_one_by_one(sam, source, shards):
    work = Everything({"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0})
    answers = asked_at_once(sam, source, work, shards)
    assert [each.result() for each in answers] == [
        alone(sam, source, work, shard) for shard in shards
    ]


def test_a_source_that_is_gone_ends_its_shard_and_no_other(sam, source, work, shards, photos):
    expected = [alone(sam, source, work, shard) for shard in shards]
    (photos / shards[2].entries[0].key).unlink()
    before, at, gone, after = asked_at_once(sam, source, work, shards)
    assert [each.result() for each in (before, at, after)] == [*expected[:2], expected[3]]
    with pytest.raises(SourceGoneError):
        gone.result()


def test_a_broken_device_ends_all_shards_that_were_begun(sam, source, work, shards, monkeypatch):
    def broken(batch):
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(sam, "encode", broken)
        answers = asked_at_once(sam, source, work, shards)
        assert all(isinstance(each.exception(), RuntimeError) for each in answers)
    stream = ShardStream(sam)
    assert stream.answer(request(source, work, shards[0])) == alone(sam, source, work, shards[0])


def test_the_thread_ends_with_the_stream(sam, source, work, shards):
    stream = ShardStream(sam)
    stream.answer(request(source, work, shards[0]))
    assert shard_threads()
    del stream
    gc.collect()
    wait_until(lambda: not shard_threads())


def shard_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("samfast-shards")]
