"""Whether a piece of work compiled anything anew, or found all it needed in caches."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

import torch


class Compilations:
    """`with Compilations(device) as seen: ...`, then `seen.count`: graphs and kernels compiled in
    the block.

    Counts what torch.compile's cache did not have, and on a GPU what Triton's had not. The modules
    that count are imported on entry where they will be needed, so that the block does not pay for
    it.
    """

    count = 0

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._graphs = 0
        self._knobs: Any = None
        self._former: Any = None

    def __enter__(self) -> Compilations:
        if self._on_gpu:
            try:
                from triton import knobs
            except ImportError:
                pass  # then nothing of Triton's can be compiled
            else:
                self._knobs, self._former = knobs.compilation, knobs.compilation.listener
                knobs.compilation.listener = self._listen
        self._graphs = _graphs()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.count += max(
            0, _graphs() - self._graphs
        )  # torch may have been told to forget its counts
        if self._knobs is not None:
            self._knobs.listener = self._former

    def _listen(self, *, cache_hit: bool, **about: Any) -> None:
        self.count += not cache_hit
        if self._former is not None:
            self._former(cache_hit=cache_hit, **about)


def _graphs() -> int:
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["inductor"]["fxgraph_cache_miss"])
