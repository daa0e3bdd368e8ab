"""The CUDA C++ kernels that an image encoder will launch on a Hopper GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from samfast.attention.kernels import hopper_global, hopper_windows
from samfast.device.cuda_programs import CudaProgram
from samfast.encoding.kernels import hopper_linear_gelu
from samfast.linear.fp8 import Fp8Linear
from samfast.model.image_encoder import Attention, Block


def programs(encoder: nn.Module, fuse: bool) -> set[CudaProgram]:
    """The programs, to be loaded ahead: of attention, and with `fuse` of lin1 and GELU."""
    blocks: Any = getattr(encoder, "blocks", ())
    return {
        program
        for block in blocks
        if isinstance(block, Block) and isinstance(block.attn, Attention)
        for program in _of_block(block, block.attn, fuse)
    }


def _of_block(block: Block, attn: Attention, fuse: bool) -> Iterator[CudaProgram]:
    weight: Any = block.norm1.weight
    dtype, dim = weight.dtype, attn.proj.in_features // attn.num_heads
    if hopper_windows.knows(block.window_size, dim, dtype):
        yield hopper_windows.program(dtype, dim)
    elif block.window_size == 0 and hopper_global.knows(dim, dtype):
        yield hopper_global.program(dim)
    if not fuse or dtype == torch.float32:
        return
    first = block.mlp.lin1
    if isinstance(first, Fp8Linear):
        yield hopper_linear_gelu.program(torch.float8_e4m3fn, dtype)
    elif type(first) is nn.Linear:
        yield hopper_linear_gelu.program(dtype, dtype)
