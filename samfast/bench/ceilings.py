"""What the device can do at most: plain matrix products of a model's own layers, and copying."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from samfast.bench.timing import measure
from samfast.bench.work import Layer, encoder_flop, layer_flop, layers
from samfast.model.config import SamConfig
from samfast.recipes import Recipe

FORMATS = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
"""The number format of products in a dtype; "int8" and "fp8" are those of quantized layers."""

BLOCK_SECONDS = 2e-3
"""Products are timed in blocks of about so long, so that launching them does not count."""

COPIED_BYTES = {"cuda": 2**30, "cpu": 2**26}


def measure_ceilings(
    config: SamConfig, batch_size: int, device: torch.device, formats: Iterable[str]
) -> dict[str, Any]:
    """Rates at the shapes of the four linear layers of an encoder block, for a batch's tokens.

    returns  "tflops", by number format: that of all four layers together, each with its share of
             the work; None where the device cannot, and "refused" says why. "layers": the same a
             layer. "copied_terabytes_per_second": read and written
    """
    found: dict[str, Any] = {"tflops": {}, "layers": {}, "refused": {}}
    tokens = batch_size * config.grid**2
    for kind in dict.fromkeys(formats):
        try:
            rates = {layer.name: _rate(layer, tokens, kind, device) for layer in layers(config)}
        except (RuntimeError, NotImplementedError, ValueError) as error:
            found["tflops"][kind] = None
            found["refused"][kind] = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        work = layer_flop(config)
        found["tflops"][kind] = sum(work.values()) / sum(
            work[name] / rate for name, rate in rates.items()
        )
        found["layers"][kind] = rates
    found["copied_terabytes_per_second"] = _copy_rate(device)
    return found


def formats_of(recipe: Recipe) -> set[str]:
    """The number formats that a recipe's products have."""
    return {FORMATS[recipe.dtype]} | ({recipe.quantize} if recipe.quantize else set())


def least_seconds(
    config: SamConfig, ceilings: dict[str, Any], dtype: torch.dtype, recipe: Recipe | None = None
) -> float | None:
    """The time that one image's products would take at those rates; None where one was not
    measured.

    Each linear layer at its own rate in its own format, the other products (attention, patches,
    neck) at the mean rate of the dtype. What 2:4 sparsity leaves out is counted as done: its
    products are those of the dense layer.

    recipe   says which layers are quantized; None: none
    """
    plain = FORMATS[dtype]
    mean = ceilings["tflops"].get(plain)
    if mean is None:
        return None
    seconds = 0.0
    work = layer_flop(config)
    for name, flop in work.items():
        quantized = recipe is not None and recipe.quantize and name in recipe.quantized_layers
        rates = ceilings["layers"].get(
            recipe.quantize if recipe is not None and quantized else plain
        )
        if rates is None:
            return None
        seconds += flop / rates[name] / 1e12
    return float(seconds + (encoder_flop(config) - sum(work.values())) / mean / 1e12)


@torch.no_grad()
def _rate(layer: Layer, tokens: int, kind: str, device: torch.device) -> float:
    """TFLOP/s of one layer's product; fp8 with one scale a token or one in all, whichever is
    faster.
    """
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
    ones = (tokens, 1), (1, layer.outputs)
    scale_a, scale_b = (torch.ones(shape if rowwise else (), device=device) for shape in ones)
    return lambda: torch._scaled_mm(
        x,
        weight.t(),
        scale_a=scale_a,
        scale_b=scale_b,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def _seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    """Of one run, the median of blocks of them."""
    if device.type != "cuda":
        return measure(run, device, repeats=3, warmup=1).median
    once = measure(run, device, repeats=3, warmup=3).median
    count = max(1, round(BLOCK_SECONDS / once))

    def block() -> None:
        for _ in range(count):
            run()

    return measure(block, device, repeats=10, warmup=1).median / count


def _copy_rate(device: torch.device) -> float:
    size = COPIED_BYTES.get(device.type, 2**26)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return (
        2 * size / measure(lambda: target.copy_(source), device, repeats=5, warmup=3).median / 1e12
    )
