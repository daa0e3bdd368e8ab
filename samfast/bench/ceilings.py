"""The encoder's arithmetic, and the rates at which the device does plain products of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samfast.bench.timing import measure
from samfast.model.config import SamConfig
from samfast.recipes import Recipe

FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""The number format of a dtype's products; "int8" and "fp8" are those of quantized layers."""

BLOCK_SECONDS = 2e-3
"""On a GPU products are timed in blocks of about this length, which hides their launches."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of every encoder block, with its name in Meta's module tree."""

    name: str
    inputs: int
    outputs: int

    def flop(self, tokens: int) -> int:
        """FLOP of one call: a multiplication and an addition for each weight and token."""
        return 2 * tokens * self.inputs * self.outputs


def layers(config: SamConfig) -> tuple[Layer, ...]:
    """The four linear layers of a block."""
    width, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
    return (
        Layer("qkv", width, 3 * width),
        Layer("proj", width, width),
        Layer("lin1", width, hidden),
        Layer("lin2", hidden, width),
    )


def layer_flop(config: SamConfig) -> dict[str, int]:
    """FLOP of an image in each of the four linear layers, over all blocks."""
    return {layer.name: config.depth * layer.flop(config.grid**2) for layer in layers(config)}


def attention_flop(config: SamConfig) -> int:
    """FLOP of an image in the attention of all blocks: scores, positions and values.

    The queries are the real tokens. A query of a window meets all keys of the window, padding
    included, which takes part in the softmax.
    """

    def block(side: int) -> int:
        scores_and_values = 2 * 2 * config.grid**2 * side**2 * config.embed_dim
        positions = 2 * 2 * config.grid**2 * side * config.embed_dim  # two tables of `side` rows
        return scores_and_values + positions

    global_blocks = len(config.global_attn_indexes)
    windowed = config.depth - global_blocks
    return global_blocks * block(config.grid) + windowed * block(config.window_size)


def encoder_flop(config: SamConfig) -> int:
    """FLOP of an image in the encoder: all products, without additions, norms and padding."""
    tokens = config.grid**2
    patches = 2 * tokens * 3 * config.patch_size**2 * config.embed_dim
    neck = 2 * tokens * (config.embed_dim + 9 * config.out_chans) * config.out_chans
    return patches + sum(layer_flop(config).values()) + attention_flop(config) + neck


def measure_ceilings(
    config: SamConfig, batch_size: int, device: torch.device, formats: Iterable[str]
) -> dict[str, Any]:
    """Rates at the shapes of the four linear layers, for a batch's tokens.

    returns  "tflops", by number format: of all four layers, weighted by their work; None where the
             device cannot, and "refused" says why. "layers": the same for each layer
    """
    ceilings: dict[str, Any] = {"tflops": {}, "layers": {}, "refused": {}}
    tokens, work = batch_size * config.grid**2, layer_flop(config)
    for kind in dict.fromkeys(formats):
        try:
            rates = {layer.name: _rate(layer, tokens, kind, device) for layer in layers(config)}
        except (RuntimeError, NotImplementedError, ValueError) as error:
            ceilings["tflops"][kind] = None
            ceilings["refused"][kind] = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        least = sum(work[name] / rate for name, rate in rates.items())
        ceilings["tflops"][kind] = sum(work.values()) / least
        ceilings["layers"][kind] = rates
    return ceilings


def formats_of(recipe: Recipe) -> set[str]:
    """The number formats of a recipe's products."""
    return {FORMATS[recipe.dtype]} | ({recipe.quantize} if recipe.quantize else set())


def least_seconds(config: SamConfig, ceilings: dict[str, Any], recipe: Recipe) -> float | None:
    """The time of one image's products at those rates; None where one was not measured.

    Each linear layer counts at its own rate in its own format, other products (attention, patches,
    neck) at the dtype's mean rate. 2:4 sparsity counts as the dense layer's products.
    """
    plain = FORMATS[recipe.dtype]
    mean = ceilings["tflops"].get(plain)
    if mean is None:
        return None
    seconds, work = 0.0, layer_flop(config)
    for name, flop in work.items():
        quantized = recipe.quantize and name in recipe.quantized_layers
        kind = recipe.quantize if quantized else plain
        rates = ceilings["layers"].get(kind)
        if rates is None:
            return None
        seconds += flop / rates[name] / 1e12
    return float(seconds + (encoder_flop(config) - sum(work.values())) / mean / 1e12)


@torch.no_grad()
def _rate(layer: Layer, tokens: int, kind: str, device: torch.device) -> float:
    """TFLOP/s of one layer's product; fp8 with scales by row or by tensor, whichever is faster."""
    if kind == "fp8":
        runs = [_fp8(layer, tokens, device, rowwise) for rowwise in (True, False)]
    elif kind == "int8":
        runs = [_int8(layer, tokens, device)]
    else:
        runs = [_float(layer, tokens, kind, device)]
    return max(layer.flop(tokens) / _seconds(run, device) / 1e12 for run in runs)


def _float(layer: Layer, tokens: int, kind: str, device: torch.device) -> Callable[[], Tensor]:
    dtype = next(dtype for dtype, name in FORMATS.items() if name == kind)
    x = torch.randn(tokens, layer.inputs, device=device).to(dtype)
    weight = (0.02 * torch.randn(layer.outputs, layer.inputs, device=device)).to(dtype)
    return lambda: torch.nn.functional.linear(x, weight)


def _int8(layer: Layer, tokens: int, device: torch.device) -> Callable[[], Tensor]:
    x, weight = (
        torch.randint(-127, 128, (rows, layer.inputs), device=device, dtype=torch.int8)
        for rows in (tokens, layer.outputs)
    )
    return lambda: torch._int_mm(x, weight.t())


def _fp8(layer: Layer, tokens: int, device: torch.device, rowwise: bool) -> Callable[[], Tensor]:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise NotImplementedError("float8 products need compute capability 8.9")
    x = torch.randn(tokens, layer.inputs, device=device).to(torch.float8_e4m3fn)
    weight = torch.randn(layer.outputs, layer.inputs, device=device).to(torch.float8_e4m3fn)
    shapes = ((tokens, 1), (1, layer.outputs)) if rowwise else ((), ())
    scale_a, scale_b = (torch.ones(shape, device=device) for shape in shapes)
    return lambda: torch._scaled_mm(
        x,
        weight.t(),
        scale_a=scale_a,
        scale_b=scale_b,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def _seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    """Of one run: the median, on a GPU of blocks of runs."""
    if device.type != "cuda":
        return measure(run, device, repeats=3, warmup=1).median
    count = max(1, round(BLOCK_SECONDS / measure(run, device, repeats=3, warmup=3).median))

    def block() -> None:
        for _ in range(count):
            run()

    return measure(block, device, repeats=10, warmup=1).median / count
