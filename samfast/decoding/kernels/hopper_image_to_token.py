"""Image-to-token attention by CUDA C++ on Hopper GPUs, by hopper_image_to_token.cu."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samfast.decoding.kernels.hopper_rows import CHANNELS, HEADS, PANEL, TILE, panels
from samfast.device import cuda_programs
from samfast.device.cuda_programs import CudaProgram

MAX_TOKENS = 7
"""Tokens of an object; an eighth holds the bias."""

THREADS = 384

_TYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}


@functools.cache
def program(dtype: torch.dtype) -> CudaProgram:
    """The kernel for images of that dtype."""
    source = Path(__file__).with_suffix(".cu")
    definitions = (("TYPE", f'"{_TYPES[dtype]}"'), ("BF16", str(int(dtype == torch.bfloat16))))
    return CudaProgram(source, "image_to_token_attention", definitions, "sm_90a")


def takes(
    images: Tensor, source_of: Tensor, token_keys: Tensor, vectors: Sequence[Tensor] = ()
) -> bool:
    """Whether the kernel runs for these operands, on this machine; else Triton's does.

    vectors  the bias, and the norm's weight and bias
    """
    heads, _, tokens, channels = token_keys.shape
    return (
        images.dtype in _TYPES
        and source_of.dtype == torch.int64
        and all(vector.dtype == images.dtype for vector in vectors)
        and (heads, channels) == (HEADS, CHANNELS)
        and tokens <= MAX_TOKENS
        and cuda_programs.available(program(images.dtype), images.device)
    )


def launch(
    images: Tensor,
    position: Tensor,
    source_of: Tensor,
    token_keys: Tensor,
    score_bias: Tensor,
    token_values: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    scale: float,
    out: Tensor,
) -> None:
    """As `samfast.decoding.kernels.image_to_token.launch`, where `takes` says so."""
    _, count, tokens, _ = token_keys.shape
    places = images.shape[1]
    rows = PANEL, TILE, CHANNELS // PANEL
    of_tokens = PANEL, MAX_TOKENS + 1, 1, HEADS, CHANNELS // PANEL
    maps = [
        cuda_programs.tensor_map(panels(images), (*rows, 1)),
        cuda_programs.tensor_map(panels(position), rows),
        cuda_programs.tensor_map(panels(token_keys).movedim(2, 0), of_tokens),
        cuda_programs.tensor_map(panels(token_values).movedim(2, 0), of_tokens),
        cuda_programs.tensor_map(panels(out), (*rows, 1)),
    ]
    pointers = (source_of, score_bias, out_bias, norm_weight, norm_bias)
    arguments: list[tuple[Any, Any]] = [(each, None) for each in maps]
    arguments += [(tensor.data_ptr(), ctypes.c_void_p) for tensor in pointers]
    arguments += [(size, ctypes.c_int) for size in (count, tokens, places)]
    arguments += [(scale * math.log2(math.e), ctypes.c_float), (eps, ctypes.c_float)]
    tiles = count * -(-places // TILE)
    blocks = min(cuda_programs.multiprocessors(images.device), tiles)
    kernel = cuda_programs.load(program(images.dtype), images.device)
    kernel.launch((blocks, 1, 1), THREADS, arguments, images.device)
