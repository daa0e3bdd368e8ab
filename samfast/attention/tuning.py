"""The fastest configuration of the attention kernels; each is checked before it is timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samfast.attention import active_configs, reference, triton
from samfast.attention.kernels.tunables import Config, candidates

FLOOR = 1e-6
"""Relative error that is allowed in every dtype."""


@dataclass(frozen=True)
class Shape:
    """The attention to tune for: B images of grid tokens, heads of width dim; window 0: global."""

    batch: int
    grid: tuple[int, int]
    num_heads: int
    dim: int
    window: int
    dtype: torch.dtype


Launch = Callable[[Config, Tensor, Tensor, Tensor, Tensor, Shape], Tensor]
"""A kernel: a configuration, and qkv, table_h, table_w and pad of a shape."""


def tune(shape: Shape, device: torch.device, launch: Launch | None = None) -> dict[str, Any]:
    """Try every candidate on random tokens; a row for `samfast.attention.active_configs.use`.

    launch   what is tuned; None: the attention kernels
    returns  gpu, capability, window, dtype, dim, the best config, its milliseconds, and `tried`:
             for each candidate its relative error and milliseconds, or why it was refused. A
             candidate whose error against float64 is more than twice that of the reference in the
             same dtype is never timed
    Raises RuntimeError if no candidate is right.
    """
    run = launch or _launch
    name, capability = active_configs.gpu(device)
    inputs = _random_inputs(shape, device)
    truth = _reference(shape, inputs, torch.float64)
    allowed = max(2 * _error(_reference(shape, inputs, shape.dtype), truth), FLOOR)

    def attempt(config: Config) -> dict[str, Any]:
        row: dict[str, Any] = {"config": asdict(config)}
        row |= {"error": None, "milliseconds": None, "refused": None}
        try:
            row["error"] = _error(run(config, *inputs, shape)[:1].double(), truth)
            if row["error"] <= allowed:
                row["milliseconds"] = _milliseconds(lambda: run(config, *inputs, shape), device)
            else:
                error = f"relative error {row['error']:.1e}"
                row["refused"] = f"{error}, at most {allowed:.1e} is allowed"
        except Exception as error:  # of a compiler or driver, for a shape that it cannot take
            first_line = str(error).partition("\n")[0]
            row["refused"] = f"{type(error).__name__}: {first_line}"
        return row

    tried = [attempt(c) for c in candidates(bool(shape.window), shape.dtype, capability)]
    timed = [row for row in tried if row["milliseconds"] is not None]
    if not timed:
        raise RuntimeError(f"no configuration for {shape} is right on {name}: {tried}")
    best = min(timed, key=lambda row: float(row["milliseconds"]))
    return {
        "gpu": name,
        "capability": list(capability),
        "window": bool(shape.window),
        "dtype": str(shape.dtype).removeprefix("torch."),
        "dim": shape.dim,
        "config": best["config"],
        "milliseconds": best["milliseconds"],
        "tried": tried,
    }


Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def _random_inputs(shape: Shape, device: torch.device) -> Inputs:
    """qkv, both tables and the padding token."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int, spread: float = 1.0) -> Tensor:
        return (torch.randn(*sizes, generator=generator, device=device) * spread).to(shape.dtype)

    height, width = (shape.window, shape.window) if shape.window else shape.grid
    channels = shape.num_heads * shape.dim
    return (
        random(shape.batch, *shape.grid, 3 * channels),
        random(2 * height - 1, shape.dim, spread=0.2),
        random(2 * width - 1, shape.dim, spread=0.2),
        random(3 * channels),
    )


def _reference(shape: Shape, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """The first image's attention, computed in that dtype, as float64."""
    qkv, table_h, table_w, pad = (x.to(dtype) for x in (inputs[0][:1], *inputs[1:]))
    heads, window = shape.num_heads, shape.window
    out = reference.attend(qkv, table_h, table_w, num_heads=heads, window=window, pad=pad)
    return out.double()


def _launch(
    config: Config, qkv: Tensor, table_h: Tensor, table_w: Tensor, pad: Tensor, shape: Shape
) -> Tensor:
    return triton.launch(qkv, table_h, table_w, pad, shape.num_heads, shape.window, config)


def _error(answer: Tensor, truth: Tensor) -> float:
    error = float((answer - truth).norm() / truth.norm())
    return error if error == error else float("inf")  # NaN counts as infinitely wrong


def _milliseconds(
    work: Callable[[], Tensor], device: torch.device, repeats: int = 7, calls: int = 8
) -> float:
    """Median time of a call after a warm-up, by GPU events around several calls."""
    if device.type != "cuda":
        raise RuntimeError("kernels are timed on a GPU only")
    work()
    times = []
    for _ in range(repeats):
        event = partial(torch.cuda.Event, enable_timing=True)
        start, end = event(), event()
        torch.cuda.synchronize(device)
        # A millisecond of idling, in which the host queues the calls.
        torch.cuda._sleep(2_000_000)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / calls)
    return statistics.median(times)
