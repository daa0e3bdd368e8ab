"""torch.compile for the encoder: one graph for all blocks of the same code, whatever the depth.

The first windowed block is compiled and so is the first global one; the others run the same two
graphs with their own weights, which are inputs of a graph. The patch embedding and the neck are not
compiled: they are mostly matrix products, and compiling them would add half as much compile time
without a measurable gain.
"""

from __future__ import annotations

import logging
import threading
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samfast.device import artifacts
from samfast.device.artifacts import CachedCode, Key, compile_keys
from samfast.device.machine import device_name
from samfast.model.image_encoder import ImageEncoderViT

MODES = {
    "default": None,
    "reduce-overhead": None,
    "max-autotune": "max-autotune-no-cudagraphs",
    "max-autotune-no-cudagraphs": "max-autotune-no-cudagraphs",
}
"""A recipe's mode -> torch's mode: CUDA graphs are recorded by `samfast.device.cuda_graphs`, one of
the whole encoder."""

_LOG = logging.getLogger("samfast")


@dataclass(frozen=True)
class FirstCall:
    """The first call of compiled code.

    seconds  that it took
    graphs   compiled in it, not counting those that torch loaded from a cache
    kept     the entry of the user's cache that it started from, or None
    saved    the file in which it was kept for the next process; None: nothing new, or the cache
             cannot be written
    """

    seconds: float
    graphs: int
    kept: CachedCode | None
    saved: Path | None


class CompiledEncoder:
    """An encoder that runs as compiled code.

    encoder  an `ImageEncoderViT`, which is not changed: its parameters keep their names and may be
             written to; or another module of the same call, which is compiled whole
    mode     one of MODES
    key      under which compiled code is kept between processes; None: it is not kept

    Compiles at the first call, for that batch size. A graph break is an error (fullgraph=True).
    Calls with other sizes would compile again; `samfast.encoding.static_batches` avoids them.
    """

    def __init__(self, encoder: nn.Module, mode: str, key: Key | None = None) -> None:
        self._encoder = encoder
        self._mode = MODES[mode]
        self._key = key
        self._lock = threading.Lock()
        self._regions: dict[Any, Callable[..., Tensor]] = {}
        self._region_of: dict[nn.Module, Callable[..., Tensor]] = {}
        self.first: FirstCall | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, S, S), under torch.no_grad."""
        if self.first is None:
            with self._lock:
                if self.first is None:
                    return self._first_call(pixels)
        return self._run(pixels)

    def _run(self, pixels: Tensor) -> Tensor:
        encoder = self._encoder
        if (
            not isinstance(encoder, ImageEncoderViT)
            or type(encoder).forward is not ImageEncoderViT.forward
        ):
            return self._region(encoder)(encoder, pixels)
        x = encoder.patch_embed(pixels)
        if encoder.pos_embed is not None:
            x = x + encoder.pos_embed
        x = x.contiguous()  # as between blocks: other strides would be another graph
        for block in encoder.blocks:
            x = self._region(block)(block, x)
        out: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
        return out

    def _region(self, module: nn.Module) -> Callable[..., Tensor]:
        """The compiled call of this module; modules of the same code share it."""
        region = self._region_of.get(module)
        if region is None:
            code = _code_of(module)
            if code not in self._regions:
                self._regions[code] = torch.compile(
                    _copy_of(_call), fullgraph=True, dynamic=False, mode=self._mode
                )
            region = self._region_of[module] = self._regions[code]
        return region

    def _first_call(self, pixels: Tensor) -> Tensor:
        from torch._dynamo.utils import counters

        kept = None if self._key is None else artifacts.load(self._key)
        before = counters["inductor"]["fxgraph_cache_miss"]
        moment, start = time.time(), time.perf_counter()
        with compile_keys.program_independent_keys():
            features = self._run(pixels)
        seconds = time.perf_counter() - start
        graphs = counters["inductor"]["fxgraph_cache_miss"] - before
        saved = None
        if self._key is not None and (kept is None or graphs):
            saved = artifacts.save(self._key, seconds, moment)
        _LOG.info("first call of the compiled encoder: %.1f s, %d graphs compiled", seconds, graphs)
        self.first = FirstCall(seconds, graphs, kept, saved)
        return features


def code_key(
    encoder: ImageEncoderViT,
    name: str,
    settings: Mapping[str, object],
    batch_size: int,
    device: torch.device,
) -> Key:
    """The key under which the compiled code of this encoder is kept.

    name      of the model, for people; the encoder's sizes are part of the key
    settings  the recipe's fields on which the code depends
    """
    windows = [str(block.window_size) for block in encoder.blocks]
    width = encoder.neck[0].in_channels
    heads = encoder.blocks[0].attn.num_heads  # type: ignore[union-attr]
    sizes = f"{width} wide, {len(windows)} blocks, {heads} heads, windows {'/'.join(windows)}"
    text = ", ".join(f"{field}={value}" for field, value in settings.items())
    return Key(device_name(device), f"{name} ({sizes})", encoder.img_size, text, batch_size)


def register_operations(*, triton: bool, fuse: bool) -> None:
    """Register custom operations with PyTorch, which cannot be done while their callers are traced.

    triton  those of the Triton attention;  fuse  those of the fused encoder
    """
    if triton:
        from samfast.attention.triton import attend_fused

        attend_fused.register()
    if fuse:
        from samfast.encoding import fused_operations

        fused_operations.register()


def _call(module: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = module(x)
    return out


def _copy_of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function with a new code object.

    torch keeps compiled graphs by code object, eight at most, and calls each after the first a
    recompile: a global block would be one after a windowed block, and the fifth model of a process
    one too many.
    """
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def _code_of(block: nn.Module) -> tuple[Any, ...]:
    """Equal for blocks that can share a graph."""
    tensors = (*block.named_parameters(), *block.named_buffers())
    return (
        getattr(block, "window_size", None),
        tuple(type(module) for module in block.modules()),
        tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors),
    )
