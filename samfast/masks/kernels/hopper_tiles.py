"""Logits to masks and measures by CUDA C++ on Hopper GPUs; the kernel is in hopper_tiles.cu."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samfast.device import cuda_programs
from samfast.device.cuda_programs import CudaProgram
from samfast.masks.bit_masks import words
from samfast.masks.kernels.interpolation import beyond, scale
from samfast.masks.measures import Postprocessed
from samfast.masks.resize_geometry import ResizeGeometry

WARPS = 4
LANES = 32
COLUMNS = 32
"""Columns of the image in a strip, one for each lane."""

CHUNK = 8
"""Neighbouring logits that a lane scans; all lanes of a warp scan a row of logits at once."""

MIN_WARPS = 2048
"""Warps that keep a large GPU busy; the bands of fewer masks are cut into more pieces."""

_TYPES = {torch.bfloat16: ("bf16", 2), torch.float16: ("f16", 2), torch.float32: ("f32", 4)}


@functools.cache
def program(dtype: torch.dtype) -> CudaProgram:
    """The kernel for logits of that dtype."""
    name, size = _TYPES[dtype]
    source = Path(__file__).with_suffix(".cu")
    return CudaProgram(source, "tiles", (("TYPE", f'"{name}"'), ("BYTES", str(size))), "sm_90a")


def programs(dtype: torch.dtype) -> set[CudaProgram]:
    """The kernels for logits of a decoder of that dtype, which prompts get in float32."""
    return {program(dtype), program(torch.float32)}


def takes(low_res: Tensor, geometry: ResizeGeometry) -> bool:
    """Whether the kernel runs for these logits, on this machine; else Triton's does."""
    return knows(low_res, geometry) and cuda_programs.available(
        program(low_res.dtype), low_res.device
    )


def knows(low_res: Tensor, geometry: ResizeGeometry) -> bool:
    """Whether the kernel is written for logits of that kind."""
    low_h, low_w = low_res.shape[-2:]
    return (
        low_res.dtype in _TYPES
        and 3 <= low_h <= geometry.side
        and CHUNK <= low_w <= min(geometry.side, LANES * CHUNK)
        and low_w % CHUNK == 0
    )


def launch(
    low_res: Tensor,
    geometry: ResizeGeometry,
    threshold: float,
    *,
    offset: float | None = None,
    masks: bool = False,
    pack: bool = False,
    wanted: Tensor | None = None,
) -> Postprocessed:
    """As `samfast.masks.kernels.postprocess_tiles.launch`, where `takes` says so."""
    low_res = low_res.flatten(0, -3).contiguous()
    if low_res.data_ptr() % 16 != 0:  # a lane loads that many bytes
        low_res = low_res.clone()
    count, low_h, low_w = low_res.shape
    (inside_h, inside_w), (height, width) = geometry.input_size, geometry.original_size
    bands, strips = words(height), -(-width // COLUMNS)
    out = low_res.new_empty((count, height, width), dtype=torch.bool) if masks else None
    packed = low_res.new_empty((count, width, bands), dtype=torch.int32) if pack else None
    table = finished = None
    if offset is not None:
        zeros = low_res.new_zeros(8 * count, dtype=torch.int32)
        table, finished = zeros[: 7 * count].view(count, 7), zeros[7 * count :]
    if count:
        pieces = min(strips, -(-MIN_WARPS // (count * bands)))
        span = -(-strips // pieces)
        blocks = -(-bands * -(-strips // span) // WARPS)
        marks = None if wanted is None else wanted.contiguous()
        margin = offset or 0.0
        levels = (
            threshold + 0.0,  # -0.0 becomes 0.0: the kernel reads signs, of -0.0 - 0.0 too
            margin,
            beyond(threshold - abs(margin), -1),
            beyond(threshold + abs(margin), 1),
        )
        scales = (
            *(scale(low_h, geometry.side), scale(low_w, geometry.side)),
            *(scale(inside_h, height), scale(inside_w, width)),
        )
        arguments: list[tuple[Any, Any]] = [
            (0 if tensor is None else tensor.data_ptr(), ctypes.c_void_p)
            for tensor in (low_res, out, packed, table, finished, marks)
        ]
        sizes = low_h, low_w, inside_h, inside_w, height, width, span, blocks
        arguments += [(size, ctypes.c_int) for size in sizes]
        arguments += [(number, ctypes.c_float) for number in (*scales, *levels)]
        kernel = cuda_programs.load(program(low_res.dtype), low_res.device)
        kernel.launch((count * blocks, 1, 1), WARPS * LANES, arguments, low_res.device)
    return Postprocessed(table, out, packed)
