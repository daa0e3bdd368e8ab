"""Token-to-image attention by CUDA C++ on Hopper GPUs, by hopper_token_to_image.cu."""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samfast.decoding.kernels.hopper_rows import CHANNELS, HEADS, PANEL, TILE, panels
from samfast.device import cuda_programs
from samfast.device.cuda_programs import CudaProgram

MAX_TOKENS = 8
"""Tokens of an object: with all heads, the rows of a product."""

GROUPS = 2
"""Objects that a block takes at a time."""

THREADS = 384

_TYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}


@functools.cache
def program(dtype: torch.dtype) -> CudaProgram:
    """The kernel for images of that dtype."""
    source = Path(__file__).with_suffix(".cu")
    definitions = (("TYPE", f'"{_TYPES[dtype]}"'),)
    return CudaProgram(source, "token_to_image_attention", definitions, "sm_90a")


def takes(queries: Tensor, source_of: Tensor) -> bool:
    """Whether the kernel runs for these operands, on this machine; else Triton's does."""
    heads, _, tokens, channels = queries.shape
    return (
        queries.dtype in _TYPES
        and source_of.dtype == torch.int64
        and (heads, channels) == (HEADS, CHANNELS)
        and tokens <= MAX_TOKENS
        and cuda_programs.available(program(queries.dtype), queries.device)
    )


def launch(
    queries: Tensor,
    images: Tensor,
    position: Tensor,
    source_of: Tensor,
    scale: float,
    parts: tuple[Tensor, Tensor, Tensor],
    span: int,
) -> None:
    """As `samfast.decoding.kernels.token_to_image.launch`, where `takes` says so.

    parts  written: as of the kernel of Triton, out, tops and totals
    span   places of a split, a multiple of TILE
    """
    _, count, tokens, _ = queries.shape
    places = images.shape[1]
    splits = -(-places // span)
    rows = PANEL, TILE, CHANNELS // PANEL
    of_tokens = PANEL, MAX_TOKENS, 1, HEADS, CHANNELS // PANEL
    maps = [
        cuda_programs.tensor_map(panels(queries).movedim(2, 0), of_tokens),
        cuda_programs.tensor_map(panels(images), (*rows, 1)),
        cuda_programs.tensor_map(panels(position), rows),
    ]
    arguments: list[tuple[Any, Any]] = [(each, None) for each in maps]
    arguments += [(tensor.data_ptr(), ctypes.c_void_p) for tensor in (source_of, *parts)]
    arguments += [(size, ctypes.c_int) for size in (count, tokens, places, splits, span)]
    arguments += [(scale * math.log2(math.e), ctypes.c_float)]
    items = -(-count // GROUPS) * splits
    blocks = min(cuda_programs.multiprocessors(images.device), items)
    kernel = cuda_programs.load(program(queries.dtype), queries.device)
    kernel.launch((blocks, 1, 1), THREADS, arguments, queries.device)
