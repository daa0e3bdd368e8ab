"""Work as a CUDA graph: hundreds of kernels launched at once, by replaying a recording."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from samfast.device.parameter_watcher import ParameterWatcher
from samfast.errors import UsageError

WARM_UP = 2
"""Runs before the recording: kernels are compiled and chosen in them, which a recording could not
hold."""

_LOG = logging.getLogger("samfast")

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")
Answer = TypeVar("Answer")

Encode = Callable[[Tensor], Tensor]
"""Pixels (B, 3, S, S) float32 on the device to embeddings (B, 256, S / 16, S / 16)."""


@dataclass(frozen=True)
class _Recording:
    """A graph, the tensors that it reads and writes, and the weights it was recorded with.

    weights  are kept alive, so that replaying reads no memory that has become another's
    """

    graph: Any  # torch.cuda.CUDAGraph, which torch has no types for
    inputs: Any
    outputs: Any
    weights: tuple[Tensor, ...]
    places: tuple[int, ...]


class Recorder:
    """CUDA graphs of a module's work, one a key: recorded at the first call with it, replayed from
    then on.

    module  whose weights are used. Weights changed in place (load_state_dict) are seen by a replay;
            where a parameter has been replaced or moved every graph is recorded anew, with a line
            in the log
    name    of the module, for messages
    most    graphs that are kept: the one that was not called for longest goes first. None: all

    Calls from several threads and streams follow each other. A recording that fails, as for want of
    memory, leaves those before it as they were.
    """

    def __init__(self, module: nn.Module, name: str, most: int | None = None) -> None:
        self._watch = ParameterWatcher(module)
        self._name = name
        self._most = most
        self._home = next(module.parameters()).device
        self._recordings: dict[Hashable, _Recording] = {}  # the last called for is the last
        self._lock = threading.Lock()
        self._pool: Any = None
        self._stream: Any = None
        self._done: Any = None
        self.recorded = 0

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """Those of the graphs that are kept."""
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

        key     names everything that the work depends on but the values of its inputs
        static  makes the tensors that the graph reads; called once a recording, which keeps them.
                Tensors that other recordings read or write too may be among them: what a call puts
                in it reads itself
        fill    writes this call's values into them
        run     the work, from those tensors to its answer; it must not synchronise
        take    copies what the caller is to keep: the next call writes over the rest
        """
        with self._lock:
            recording = self._recordings.pop(key, None) or self._record(static, fill, run)
            self._recordings[key] = recording
            answer = self._replay(recording, fill, take)
            # Looked at while the GPU works; walking the weights first would be seen in the latency.
            if self._watch.places() != recording.places:
                _LOG.info(
                    "weights of the %s were replaced: its CUDA graph is recorded anew", self._name
                )
                del recording
                self._forget()
                self._recordings[key] = self._record(static, fill, run)
                answer = self._replay(self._recordings[key], fill, take)
            return answer

    def _forget(self) -> None:
        self._recordings.clear()
        self._pool = (
            torch.cuda.graph_pool_handle()
        )  # a pool ends with the last graph that lies in it

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
        finally:  # there may be no memory for the answer
            self._done.record(stream)

    def _record(
        self, static: Callable[[], Any], fill: Callable[[Any], object], run: Callable[[Any], Any]
    ) -> _Recording:
        weights = tuple(tensor.detach() for tensor in self._watch.tensors)
        elsewhere = {str(tensor.device) for tensor in weights if tensor.device != self._home}
        if elsewhere:
            raise UsageError(
                f"the {self._name} was loaded onto {self._home} as a CUDA graph and is on "
                f"{', '.join(sorted(elsewhere))} now; load it again with device=..."
            )
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self._home)  # type: ignore[no-untyped-call]
        while self._most is not None and len(self._recordings) >= self._most:
            # nothing of what goes is running; recording waits for the GPU anyway
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
                for _ in range(WARM_UP):
                    run(inputs)
            current.wait_stream(self._stream)
            outputs = self._capture(graph, lambda: run(inputs))
        except BaseException:
            # What ran there still reads memory that is given back here. Nothing else is left of the
            # attempt.
            current.wait_stream(self._stream)
            if not self._recordings:
                self._pool = (
                    torch.cuda.graph_pool_handle()
                )  # the old one ends with the failed graph
            raise
        self.recorded += 1
        return _Recording(graph, inputs, outputs, weights, self._watch.places())

    def _capture(self, graph: Any, run: Callable[[], Outputs]) -> Outputs:
        # Other threads may allocate meanwhile: only what this one does is to be recorded.
        recording = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            # Where ending a failed recording fails too, torch would leave the caller on this
            # stream.
            with torch.cuda.stream(self._stream), recording:
                return run()
        except RuntimeError as error:
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise torch.OutOfMemoryError(str(error.__context__)) from error
            raise


class Graphed:
    """An encoder as CUDA graphs, one a batch size, recorded at the first call with it.

    encode   run under torch.no_grad; it must not synchronise
    module   whose weights it uses, as `Recorder` has it
    largest  batch size
    dtype    in which pixels are held between calls: what the encoder rounds them to anyway

    The answer is a copy: the caller's to keep. Calls from several threads and streams follow each
    other.
    """

    def __init__(self, encode: Encode, module: nn.Module, largest: int, dtype: torch.dtype) -> None:
        self._encode = encode
        self._home = next(module.parameters()).device
        self._largest = largest
        self._dtype = dtype
        self._recorder = Recorder(module, "encoder")
        self._input: Tensor | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes recorded so far."""
        return tuple(sorted(cast("tuple[int, ...]", self._recorder.keys)))

    def __call__(self, pixels: Tensor) -> Tensor:
        """As `Encode`, for at most `largest` images."""
        return self._recorder(
            len(pixels),
            lambda: self._static(pixels),
            lambda static: static.copy_(pixels),
            self._encode,
            Tensor.clone,
        )

    def _static(self, pixels: Tensor) -> Tensor:
        if self._input is None:
            shape = (self._largest, *pixels.shape[1:])
            self._input = torch.zeros(shape, dtype=self._dtype, device=self._home)
        return self._input[: len(pixels)]
