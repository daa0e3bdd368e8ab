"""Window attention by CUDA C++ on Hopper GPUs; the kernel is in hopper_windows.cu."""

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

WINDOW = 14
DIMS = (64, 80)
"""What the kernel is written for: all models of Segment Anything."""

PANEL = 64
"""Columns of a head that lie side by side in shared memory."""

THREADS = 256
BLOCKS_PER_MULTIPROCESSOR = 2

_TYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}


@functools.cache
def program(dtype: torch.dtype, dim: int) -> CudaProgram:
    """The kernel for heads of that dtype and width."""
    source = Path(__file__).with_suffix(".cu")
    definitions = (("DIM", str(dim)), ("TYPE", f'"{_TYPES[dtype]}"'))
    return CudaProgram(source, "window_attention", definitions, "sm_90a")


def takes(qkv: Tensor, num_heads: int, window: int) -> bool:
    """Whether the kernel runs for these tokens, on this machine; else Triton's does."""
    return fits(window, qkv.shape[-1] // (3 * num_heads), qkv.dtype, qkv.device)


def fits(window: int, dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel runs for windows and heads of that kind, on this machine."""
    return knows(window, dim, dtype) and cuda_programs.available(program(dtype, dim), device)


def knows(window: int, dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernel is written for windows and heads of that kind."""
    return window == WINDOW and dim in DIMS and dtype in _TYPES


def launch(
    qkv: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    pad: Tensor | None,
    num_heads: int,
) -> Tensor:
    """As `samfast.attention.kernels.window_attention.launch`, where `takes` says so."""
    batch, height, width, channels = qkv.shape
    channels //= 3
    dim = channels // num_heads
    out = qkv.new_empty(batch, height, width, channels)
    given = [(table, (2 * WINDOW - 1) * dim) for table in (table_h, table_w)]
    tables_and_pad = [
        qkv.new_zeros(size) if tensor is None else tensor.contiguous()
        for tensor, size in (*given, (pad, 3 * channels))
    ]
    first = cuda_programs.tensor_map(qkv, (PANEL, WINDOW, WINDOW, 1))
    second = first
    if dim > PANEL:
        second = cuda_programs.tensor_map(qkv, (dim - PANEL, WINDOW, WINDOW, 1))
    windows = batch * -(-height // WINDOW) * -(-width // WINDOW)
    blocks = BLOCKS_PER_MULTIPROCESSOR * cuda_programs.multiprocessors(qkv.device)
    pointers = (qkv, *tables_and_pad, out)
    arguments: list[tuple[Any, Any]] = [(first, None), (second, None)]
    arguments += [(tensor.data_ptr(), ctypes.c_void_p) for tensor in pointers]
    arguments += [(size, ctypes.c_int) for size in (batch, height, width, channels)]
    arguments += [(dim**-0.5 * math.log2(math.e), ctypes.c_float), (dim**0.5, ctypes.c_float)]
    grid = num_heads, min(windows, max(1, blocks // num_heads)), 1
    kernel = cuda_programs.load(program(qkv.dtype, dim), qkv.device)
    kernel.launch(grid, THREADS, arguments, qkv.device)
    return out
