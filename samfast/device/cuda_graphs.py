"""CUDA graphs: hundreds of kernels launched at once, by replaying a recording."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from samfast.device.dry_run import dry_run
from samfast.device.parameter_watcher import ParameterWatcher
from samfast.errors import UsageError

WARM_UP = 2
"""Runs before the recording, in which kernels are compiled and chosen; a recording cannot do
that."""

_LOG = logging.getLogger("samfast")

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Recording:
    """A graph, the tensors that it reads and writes, and the weights it was recorded with.

    weights    kept alive, so that a replay reads no memory that was given to something else
    addresses  of the weights
    """

    graph: Any  # torch.cuda.CUDAGraph, which torch has no types for
    inputs: Any
    outputs: Any
    weights: tuple[Tensor, ...]
    addresses: tuple[int, ...]


def graph_sizes(most: int) -> tuple[int, ...]:
    """Batch sizes of recorded graphs: powers of two, and the largest batch."""
    return tuple(sorted({most, *(1 << power for power in range(most.bit_length()))}))


class Recorder:
    """CUDA graphs of a module's work, one per key, recorded at the first call and then replayed.

    module  whose weights are used. A replay uses weights that were changed in place
            (load_state_dict); where a parameter was replaced or moved, every graph is recorded
            again, with a logged line
    name    of the module, for messages
    most    graphs that are kept; the least recently used is dropped. None: all
    dry     whether the first recording begins with a `dry_run`, for work that is not compiled by
            PyTorch

    Calls from several threads and streams run one after another. A recording that fails, for lack
    of memory for example, leaves earlier recordings as they were.
    """

    def __init__(
        self, module: nn.Module, name: str, most: int | None = None, *, dry: bool = True
    ) -> None:
        self._watch = ParameterWatcher(module)
        self._name = name
        self._most = most
        self._dry = dry
        self._home = next(module.parameters()).device
        self._recordings: dict[Hashable, _Recording] = {}  # least recently used first
        self._lock = threading.Lock()
        self._pool: Any = None
        self._stream: Any = None
        self._done: Any = None
        self.recorded = 0

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """The keys of the graphs that are kept."""
        return tuple(self._recordings)

    def __call__(
        self,
        key: Hashable,
        static: Callable[[], Inputs],
        fill: Callable[[Inputs], object],
        run: Callable[[Inputs], Outputs],
        take: Callable[[Outputs], Answer],
    ) -> Answer:
        """Run as a graph, under torch.no_grad.

        key     everything that the work depends on but the values of its inputs
        static  makes the tensors that the graph reads; called once per recording, which keeps them.
                Recordings may share them, as every call fills them before it reads them
        fill    writes this call's values into them
        run     the work, from those tensors to its outputs; it must not synchronise, nor use a
                result of Triton's kernels as an index (`dry_run`)
        take    copies the outputs that are needed: the next call overwrites them
        """
        with self._lock:
            recording = self._recordings.pop(key, None) or self._record(static, fill, run)
            self._recordings[key] = recording
            answer = self._replay(recording, fill, take)
            # Compared while the GPU works: before the replay it would add to the latency.
            if self._watch.addresses() != recording.addresses:
                _LOG.info(
                    "weights of the %s were replaced: its CUDA graph is recorded again", self._name
                )
                del recording
                self._forget()
                self._recordings[key] = self._record(static, fill, run)
                answer = self._replay(self._recordings[key], fill, take)
            return answer

    def _forget(self) -> None:
        self._recordings.clear()
        # A pool is freed with the last graph that uses it.
        self._pool = torch.cuda.graph_pool_handle()

    def _replay(
        self, recording: _Recording, fill: Callable[[Any], object], take: Callable[[Any], Answer]
    ) -> Answer:
        stream = torch.cuda.current_stream(self._home)
        if self._done is not None:
            stream.wait_event(self._done)  # the last call may have been made on another stream
        self._done = self._done or torch.cuda.Event()  # type: ignore[no-untyped-call]
        try:
            fill(recording.inputs)
            recording.graph.replay()
            return take(recording.outputs)
        finally:  # also where there is no memory for the answer
            self._done.record(stream)

    def _record(
        self, static: Callable[[], Any], fill: Callable[[Any], object], run: Callable[[Any], Any]
    ) -> _Recording:
        weights = tuple(tensor.detach() for tensor in self._watch.tensors)
        moved_to = {str(tensor.device) for tensor in weights if tensor.device != self._home}
        if moved_to:
            raise UsageError(
                f"the {self._name} was loaded onto {self._home} as a CUDA graph and is on "
                f"{', '.join(sorted(moved_to))} now; load it again with device=..."
            )
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self._home)  # type: ignore[no-untyped-call]
        while self._most is not None and len(self._recordings) >= self._most:
            # The dropped graph must not be running; recording waits for the GPU anyway.
            self._done.synchronize()
            self._recordings.pop(next(iter(self._recordings)))
        current = torch.cuda.current_stream(self._home)
        if self._done is not None:
            current.wait_event(self._done)
        graph = torch.cuda.CUDAGraph()
        try:
            inputs = static()
            fill(inputs)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                if (
                    self._dry and not self.recorded
                ):  # later recordings meet few kernels that are new
                    dry_run(lambda: run(inputs), self._home)
                for _ in range(WARM_UP):
                    run(inputs)
            current.wait_stream(self._stream)
            outputs = self._capture(graph, lambda: run(inputs))
        except BaseException:
            # The warm-up may still read memory that is freed here.
            current.wait_stream(self._stream)
            if not self._recordings:
                # The old pool is freed with the failed graph.
                self._pool = torch.cuda.graph_pool_handle()
            raise
        self.recorded += 1
        return _Recording(graph, inputs, outputs, weights, self._watch.addresses())

    def _capture(self, graph: Any, run: Callable[[], Outputs]) -> Outputs:
        # Only this thread's work is recorded: others may allocate meanwhile.
        recording = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            # Where ending a failed recording fails too, torch would leave this stream current.
            with torch.cuda.stream(self._stream), recording:
                return run()
        except RuntimeError as error:
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise torch.OutOfMemoryError(str(error.__context__)) from error
            raise
