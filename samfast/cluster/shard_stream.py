"""Shards that several threads ask for, answered as one stream.

A stream that ended with each shard would leave the device idle while the last answers of a shard
are copied and the first images of the next are prepared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from samfast.cluster.answers import ShardRequest, answer_shards
from samfast.cluster.work import ShardAnswers
from samfast.engine import SamFast


class ShardStream:
    """Answers shards in the order in which they are asked for, on a thread of its own.

    The stream goes on with the next shard if that is asked for before the last images of the shard
    before are taken. Otherwise it ends, so that no answer waits for a shard that may never come,
    and another one begins with the next shard. The answers are the same either way, as each shard
    begins with a batch of its own.
    """

    def __init__(self, sam: SamFast) -> None:
        self._sam = sam
        self._waiting: deque[tuple[ShardRequest, Future[ShardAnswers]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="samfast-shards")

    def answer(self, request: ShardRequest) -> ShardAnswers:
        """The answers of a shard, when they are known; raises what ended its stream.

        May be called from several threads at once; all shards are of one run.
        """
        answers: Future[ShardAnswers] = Future()
        self._waiting.append((request, answers))
        # A stream that still goes on may take the shard; then this one finds none.
        self._thread.submit(self._answer_waiting)
        return answers.result()

    def _answer_waiting(self) -> None:
        """Answer shards until none waits; an error is that of all shards that were begun."""
        begun: deque[Future[ShardAnswers]] = deque()
        try:
            for answers in answer_shards(self._sam, self._take(begun)):
                begun.popleft().set_result(answers)
        except BaseException as error:
            while begun:
                begun.popleft().set_exception(error)

    def _take(self, begun: deque[Future[ShardAnswers]]) -> Iterator[ShardRequest]:
        while self._waiting:
            request, answers = self._waiting.popleft()
            begun.append(answers)
            yield request
