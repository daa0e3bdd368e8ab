"""The image encoder as CUDA graphs, one per batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from samfast.device.cuda_graphs import Recorder


class GraphedEncoder:
    """An encoder as CUDA graphs, one per batch size, recorded at the first call with it.

    encode   run under torch.no_grad; it must not synchronise
    module   whose weights it uses, as `Recorder` has it
    largest  batch size
    dtype    of the pixels that graphs read: the encoder rounds them to it anyway
    compiled whether PyTorch compiles `encode`

    The answer is a copy, which later calls do not overwrite. Calls from several threads and streams
    run one after another.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        module: nn.Module,
        largest: int,
        dtype: torch.dtype,
        *,
        compiled: bool = False,
    ) -> None:
        self._encode = encode
        self._home = next(module.parameters()).device
        self._largest = largest
        self._dtype = dtype
        self._recorder = Recorder(module, "encoder", dry=not compiled)
        self._input: Tensor | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes recorded so far."""
        return tuple(sorted(cast("tuple[int, ...]", self._recorder.keys)))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, S, S) of at most `largest` images."""
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
