"""Global attention by CUDA C++ on Hopper GPUs; the kernel is in hopper_global.cu."""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samfast.device import cuda_programs
from samfast.device.cuda_programs import CudaProgram

SIDE = 64
"""Rows and columns of the grid that the kernel is written for: images of 1024 pixels."""

PANEL = 64
"""Columns of a head that lie side by side in shared memory."""

DIMS = (64, 80)
"""Widths of a head: all models of Segment Anything."""

GROUPS = 3
"""Rows of queries that a block takes at a time."""

THREADS = 512


@functools.cache
def program(dim: int) -> CudaProgram:
    """The kernel for heads of that width."""
    source = Path(__file__).with_suffix(".cu")
    definitions = (("DIM", str(dim)), ("TYPE", '"bf16"'))
    return CudaProgram(source, "global_attention", definitions, "sm_90a")


def takes(qkv: Tensor, num_heads: int) -> bool:
    """Whether the kernel runs for these tokens, with positions, on this machine; else Triton's
    does.
    """
    _, height, width, channels = qkv.shape
    dim = channels // (3 * num_heads)
    return (
        (height, width) == (SIDE, SIDE)
        and knows(dim, qkv.dtype)
        and cuda_programs.available(program(dim), qkv.device)
    )


def knows(dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernel is written for heads of that kind. Those of float16 would overflow
    often.
    """
    return dim in DIMS and dtype == torch.bfloat16


def launch(
    qkv: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    out: Tensor,
    overflowed: Tensor,
    num_heads: int,
    max_total: float,
) -> None:
    """Write the answers, and which rows of queries are to be computed again, where `takes` says so.

    qkv          (B, SIDE, SIDE, 3 * C), contiguous
    rel_h        (B * num_heads, SIDE, SIDE * SIDE) as of `positions.launch`, and rel_w
    out          (B, SIDE, SIDE, C)
    overflowed   (B * num_heads, SIDE) int8
    max_total    a sum of weights below which none has overflowed
    """
    items, channels = qkv.shape[0] * num_heads, qkv.shape[-1] // 3
    dim = channels // num_heads
    tokens = qkv.flatten(0, 2)
    panels = [cuda_programs.tensor_map(tokens, (PANEL, SIDE))]
    panels += [cuda_programs.tensor_map(tokens, (dim - PANEL, SIDE)) if dim > PANEL else panels[0]]
    terms = [cuda_programs.tensor_map(each.flatten(0, 1), (SIDE, SIDE)) for each in (rel_h, rel_w)]
    arguments: list[tuple[Any, Any]] = [(each, None) for each in (*panels, *terms)]
    arguments += [(each.data_ptr(), ctypes.c_void_p) for each in (out, overflowed)]
    arguments += [(size, ctypes.c_int) for size in (items, num_heads, channels)]
    arguments += [(dim**-0.5 * math.log2(math.e), ctypes.c_float), (max_total, ctypes.c_float)]
    blocks = min(cuda_programs.multiprocessors(qkv.device), items * -(-SIDE // GROUPS))
    kernel = cuda_programs.load(program(dim), qkv.device)
    kernel.launch((blocks, 1, 1), THREADS, arguments, qkv.device)
