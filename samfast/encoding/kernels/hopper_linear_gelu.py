"""A linear layer with GELU by CUDA C++ on Hopper GPUs; the kernel is in hopper_linear_gelu.cu."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samfast.device import cuda_programs
from samfast.device.cuda_programs import CudaProgram
from samfast.linear.quantization import LARGEST

TILE = 128
"""Rows and columns that a warpgroup computes at a time."""

ROW_BYTES = 128
"""What is brought of a row at a time."""

THREADS = 384
CLUSTER = 2
"""Blocks that share the weights which they bring."""

FP8 = torch.float8_e4m3fn
_TYPES = {torch.bfloat16: "bf16", torch.float16: "f16", FP8: "e4m3"}

Scales = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of rows of x, of rows of the weight, the bound of the result, and the result's, to be written."""


@functools.cache
def program(dtype: torch.dtype, bias: torch.dtype) -> CudaProgram:
    """The kernel for operands and a bias of these dtypes."""
    source = Path(__file__).with_suffix(".cu")
    definitions = (
        ("TYPE", f'"{_TYPES[dtype]}"'),
        ("BIAS", f'"{_TYPES[bias]}"'),
        ("QUANTIZED", str(int(dtype == FP8))),
    )
    return CudaProgram(source, "linear_gelu", definitions, "sm_90a")


def takes(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the kernel runs for these operands, on this machine; else Triton's does."""
    return (
        x.dtype in _TYPES
        and bias.dtype in (torch.bfloat16, torch.float16)
        and (x.dtype in (FP8, bias.dtype))
        and weight.shape[0] % TILE == 0
        and cuda_programs.available(program(x.dtype, bias.dtype), x.device)
    )


def launch(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, scales: Scales | None) -> None:
    """Write GELU(x W^T + b) to `out`, where `takes` says so.

    The operands are those of `samfast.encoding.kernels.linear_gelu.launch`, or with scales of
    `launch_quantized`.
    """
    (rows, width), columns = x.shape, len(weight)
    depth = ROW_BYTES // x.element_size()
    clusters = min(
        cuda_programs.multiprocessors(x.device) // CLUSTER,
        -(-rows // (CLUSTER * TILE)) * (columns // TILE),
    )
    pointers = (bias, *(scales or (bias,) * 4))
    arguments: list[tuple[Any, Any]] = [
        (cuda_programs.tensor_map(x, (depth, TILE)), None),
        (cuda_programs.tensor_map(weight, (depth, TILE // CLUSTER)), None),
        (cuda_programs.tensor_map(out, (depth, TILE)), None),
    ]
    arguments += [(tensor.data_ptr(), ctypes.c_void_p) for tensor in pointers]
    arguments += [(size, ctypes.c_int) for size in (rows, columns, width)]
    arguments += [(LARGEST.get(x.dtype, 1.0), ctypes.c_float)]
    kernel = cuda_programs.load(program(x.dtype, bias.dtype), x.device)
    kernel.launch((CLUSTER * clusters, 1, 1), THREADS, arguments, x.device)
