"""Compile every kernel for a GPU that may be absent, in the sizes of SAM's ViT-B.

    python -m tests.kernels.compiling CAPABILITY

The interpreter runs code that the compiler refuses, such as a constexpr that is assigned twice.
Nothing is launched. Of each kernel at least one variant is compiled, which is checked. Prints how
many were compiled; test_compiling runs it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import samfast.attention.kernels as attention_kernels
import samfast.automatic_masks.kernels as automatic_masks_kernels
import samfast.decoding.kernels as decoding_kernels
import samfast.device.kernels as device_kernels
import samfast.encoding.kernels as encoding_kernels
import samfast.images.kernels as images_kernels
import samfast.masks.kernels as masks_kernels
from samfast.attention.kernels import global_attention, window_attention
from samfast.attention.kernels.tunables import candidates
from samfast.automatic_masks.kernels import copy_logit_crops
from samfast.decoding.kernels import (
    image_to_token,
    prompt_embedding,
    token_attention,
    token_to_image,
    upscaling,
)
from samfast.encoding.fused_operations import RowPass
from samfast.encoding.kernels import linear_gelu, patches, row_passes
from samfast.images import resampling
from samfast.images.device_preprocess import plan
from samfast.images.kernels import resize_normalize
from samfast.masks.kernels import (
    box_overlaps,
    greedy_nms,
    postprocess_tiles,
    run_ends,
    write_coco_text,
)
from samfast.masks.mask_runs import PackedMasks
from samfast.masks.resize_geometry import ResizeGeometry

HALVES = (torch.bfloat16, torch.float16)

HOPPER_ONLY = {(linear_gelu.__name__, "_linear_gelu")}
"""Kernels that nothing launches on earlier GPUs."""


class Absent:
    """The part of a driver that Triton compiles with, for a compute capability."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def masks(half: torch.dtype) -> Iterator[Any]:
    """The kernels of `samfast.masks`."""
    packed = torch.zeros(3, 7, 2, dtype=torch.int32)
    for crop, size in (((0, 0, 7, 45), (45, 7)), ((1, 2, 8, 47), (60, 9))):
        some_masks = PackedMasks.of(packed, 45, crop, size)
        counts = run_ends.count(some_masks)[0]
        ends, owners = torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int32)
        yield run_ends.write_ends(some_masks, counts, ends, owners, (0, 0, 0))
    yield write_coco_text.write(torch.arange(9), torch.zeros(9, dtype=torch.int32), 1, 5)
    yield greedy_nms.launch(box_overlaps.launch(torch.zeros(5, 4, dtype=torch.int64), 0.5))
    frame = ResizeGeometry((1024, 1024), (1000, 1000), 1024)
    some = torch.ones(3, dtype=torch.bool)
    for dtype in (half, torch.float32):
        low_res = torch.zeros(3, 256, 256, dtype=dtype)
        yield postprocess_tiles.launch(low_res, frame, 0.0, offset=1.0, wanted=some)
        yield postprocess_tiles.launch(low_res, frame, 0.0, offset=1.0, masks=True)
        yield postprocess_tiles.launch(low_res, frame, 0.0, pack=True)
        yield postprocess_tiles.launch(
            low_res, ResizeGeometry((1024, 1024), (60, 60), 1024), 0.0, offset=1.0
        )
        values = copy_logit_crops.cut(low_res, torch.tensor([[0, 0, 1, 2, 7, 9]]), 42, 42)
        table = torch.tensor([[values.data_ptr(), 1, 2, 7, 9]])
        yield copy_logit_crops.restore(table, (256, 256), dtype, -1e4)


def decoder(dtype: torch.dtype) -> Iterator[Any]:
    """The passes of the fused decoder over four objects' images."""

    def some(*size: int) -> Tensor:
        return torch.zeros(size, dtype=dtype)

    images, position, source_of = some(4, 4096, 256), some(4096, 256), torch.arange(4)
    tokens, score_bias = some(8, 4, 7, 256), torch.zeros(8, 4, 7)
    for mask in (None, torch.ones(4, 7, dtype=torch.bool)):
        yield token_attention.launch(tokens[0], tokens[0], tokens[0], mask, 8)
    yield token_to_image.launch(tokens, images, position, source_of, 0.25)
    vectors = some(256), some(256), some(256)
    inputs = images, position, source_of, tokens, score_bias, tokens, *vectors, 1e-5, 0.25
    yield image_to_token.launch(*inputs)
    yield image_to_token.launch(*inputs, out=images)
    layers = some(4, 256, 64), some(64), some(64), some(64), 1e-6, some(64, 128), some(32)
    for wanted in (None, torch.ones(4, dtype=torch.bool)):
        yield upscaling.launch(images, source_of, 64, 64, *layers, some(4, 3, 32), wanted)


def encoder(dtype: torch.dtype, capability: int) -> Iterator[Any]:
    """The passes of the fused encoder, and prompts."""
    size = 1024, 1024
    embeddings = [torch.zeros(256, dtype=dtype) for _ in range(5)]
    matrix, coords, boxes = torch.zeros(2, 128), torch.zeros(4, 1, 2), torch.zeros(4, 4)
    yield prompt_embedding.places(matrix, (64, 64), dtype)
    yield prompt_embedding.tokens(
        coords, torch.ones(4, 1, dtype=torch.int32), None, matrix, embeddings, size
    )
    yield prompt_embedding.tokens(None, None, boxes, matrix, embeddings, size)
    x, vector = torch.zeros(64, 768, dtype=dtype), torch.zeros(768, dtype=dtype)
    hidden, norm = torch.zeros(64, 3072, dtype=dtype), (vector, vector, 1e-6)
    yield row_passes.launch(x, RowPass(y=x, shift=vector, norm=norm))
    yield row_passes.launch(hidden, RowPass(gelu=True))
    for format in (torch.int8, torch.float8_e4m3fn) if capability >= 90 else (torch.int8,):
        yield row_passes.launch(x, RowPass(norm=norm, quantize=format))
        yield row_passes.launch(hidden, RowPass(gelu=True, quantize=format))
    yield patches.launch(torch.zeros(1, 3, 1024, 1024), 16, dtype)
    if capability >= 90:
        weight, bias = torch.zeros(3072, 768, dtype=dtype), torch.zeros(3072, dtype=dtype)
        yield linear_gelu.launch(x, weight, bias)
        small, scale = torch.float8_e4m3fn, torch.zeros(3072)
        rows = x.to(small), scale[:64], weight.to(small), scale, bias, scale[0]
        yield linear_gelu.launch_quantized(*rows)


def attention(dtype: torch.dtype, capability: int) -> Iterator[Any]:
    """Global and window attention, in the first configuration of each."""
    qkv, pad = torch.zeros(1, 64, 64, 3 * 768, dtype=dtype), torch.zeros(3 * 768, dtype=dtype)
    major = capability // 10, capability % 10
    table = torch.zeros(2 * 64 - 1, 64, dtype=dtype)
    yield global_attention.launch(qkv, table, table, 12, candidates(False, dtype, major)[0])
    table = torch.zeros(2 * 14 - 1, 64, dtype=dtype)
    yield window_attention.launch(qkv, table, table, pad, 12, 14, candidates(True, dtype, major)[0])


def pixels() -> Iterator[Any]:
    """Resizing."""
    table, taps, limits = plan([(600, 800)], [(768, 1024)])
    bytes_, out = torch.zeros(3 * 600 * 800, dtype=torch.uint8), torch.zeros(1, 3, 1024, 1024)
    inputs = bytes_, torch.from_numpy(table), torch.from_numpy(taps)
    yield resize_normalize.launch(*inputs, limits, out, resampling.BITS)


def main(capability: int) -> int:
    """Compile; returns how many variants."""
    driver.set_active(Absent(capability))
    run, compiled, names = JITFunction.run, set[str](), set[tuple[str, str]]()

    def compile_only(kernel: Any, *args: Any, **options: Any) -> Any:
        made = run(kernel, *args, **{**options, "warmup": True})
        assert made.asm["cubin"]
        compiled.add(made.hash)
        names.add((kernel.fn.__module__, kernel.fn.__name__))
        return made

    JITFunction.run = compile_only  # type: ignore[method-assign]
    for half in HALVES:
        for _ in (*masks(half), *decoder(half), *encoder(half, capability)):
            pass
    for dtype in (*HALVES, torch.float32):
        for _ in attention(dtype, capability):
            pass
    for _ in pixels():
        pass
    expected = launched()
    if capability < 90:
        expected -= HOPPER_ONLY
    assert names == expected, names ^ expected
    return len(compiled)


def launched() -> set[tuple[str, str]]:
    """Module and name of each kernel of the package that its module launches."""
    names = set()
    for package in (
        attention_kernels,
        automatic_masks_kernels,
        decoding_kernels,
        device_kernels,
        encoding_kernels,
        images_kernels,
        masks_kernels,
    ):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            text = inspect.getsource(module)
            for name, value in vars(module).items():
                here = isinstance(value, JITFunction) and value.fn.__module__ == info.name
                if here and re.search(rf"\b{name}\[", text):
                    names.add((info.name, name))
    return names


if __name__ == "__main__":
    print(main(int(sys.argv[1])))
