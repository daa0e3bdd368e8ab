"""The encoder as a CUDA graph: hundreds of kernels launched at once, by replaying a recording."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samfast.errors import UsageError
from samfast.model.fingerprint import marks
from samfast.recipes.batching import Encode

WARM_UP = 2
"""Runs before the recording: kernels are compiled and chosen in them, which a recording could not hold."""

_LOG = logging.getLogger("samfast")


@dataclass(frozen=True)
class _Recording:
    """A graph, the tensors that it reads and writes, and the weights it was recorded with.

    weights  are kept alive, so that replaying reads no memory that has become another's
    """

    graph: Any  # torch.cuda.CUDAGraph, which torch has no types for
    pixels: Tensor
    features: Tensor
    weights: tuple[Tensor, ...]
    places: tuple[int, ...]


class Graphed:
    """Records `encode` once a batch size, at the first call with it, and replays it from then on.

    encode   run under torch.no_grad; it must not synchronise
    module   whose weights it uses. Weights changed in place (load_state_dict) are seen by a replay; where a parameter
             has been replaced or moved the graph is recorded anew, with a line in the log
    largest  batch size
    dtype    in which pixels are held between calls: what the encoder rounds them to anyway

    The answer is a copy: the caller's to keep. Calls from several threads and streams follow each other.
    """

    def __init__(self, encode: Encode, module: nn.Module, largest: int, dtype: torch.dtype) -> None:
        self._encode = encode
        self._module = module
        self._home = next(module.parameters()).device
        self._largest = largest
        self._dtype = dtype
        self._recordings: dict[int, _Recording] = {}
        self._lock = threading.Lock()
        self._input: Tensor | None = None
        self._pool: Any = None
        self._stream: Any = None
        self._done: Any = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes recorded so far."""
        return tuple(sorted(self._recordings))

    def __call__(self, pixels: Tensor) -> Tensor:
        """As `Encode`, for at most `largest` images."""
        with self._lock:
            recording = self._recordings.get(len(pixels)) or self._record(pixels)
            answer = self._replay(recording, pixels)
            # Looked at while the GPU works; walking the weights first would be seen in the latency.
            if _places(self._module) != recording.places:
                _LOG.info("weights of the encoder were replaced: its CUDA graph is recorded anew")
                del recording
                self._forget()
                answer = self._replay(self._record(pixels), pixels)
            return answer

    def _forget(self) -> None:
        self._recordings.clear()
        self._pool = torch.cuda.graph_pool_handle()  # a pool ends with the last graph that lies in it

    def _replay(self, recording: _Recording, pixels: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(self._home)
        if self._done is not None:
            stream.wait_event(self._done)  # the last call may have been made on another stream
        recording.pixels.copy_(pixels)
        recording.graph.replay()
        answer = recording.features.clone()
        self._done = self._done or torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(stream)
        return answer

    def _record(self, pixels: Tensor) -> _Recording:
        weights = tuple(tensor.detach() for tensor in _tensors(self._module))
        elsewhere = {str(tensor.device) for tensor in weights if tensor.device != self._home}
        if elsewhere:
            raise UsageError(
                f"the encoder was loaded onto {self._home} as a CUDA graph and is on {', '.join(sorted(elsewhere))} "
                "now; load it again with device=..."
            )
        if self._input is None:
            shape = (self._largest, *pixels.shape[1:])
            self._input = torch.zeros(shape, dtype=self._dtype, device=self._home)
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self._home)  # type: ignore[no-untyped-call]
        static = self._input[: len(pixels)]
        current = torch.cuda.current_stream(self._home)
        if self._done is not None:
            current.wait_event(self._done)
        static.copy_(pixels)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                self._encode(static)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile: only what this one does is to be recorded.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            features = self._encode(static)
        recording = _Recording(graph, static, features, weights, _places(self._module))
        self._recordings[len(pixels)] = recording
        return recording


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _places(module: nn.Module) -> tuple[int, ...]:
    return tuple(place for place, _ in marks(module))
