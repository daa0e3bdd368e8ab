"""Finding the best configuration of the attention kernels on a GPU; each is checked before it is
timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samfast.attention import active_configs, reference
from samfast.attention.kernels.tunables import Config, candidates

FLOOR = 1e-6
"""Relative error that no dtype is asked to stay below."""


@dataclass(frozen=True)
class Shape:
    """The attention to tune for: B images of grid tokens, num_heads heads of width dim; window 0:
    global.
    """

    batch: int
    grid: tuple[int, int]
    num_heads: int
    dim: int
    window: int
    dtype: torch.dtype


Launch = Callable[[Config], Tensor]


def tune(
    shape: Shape, device: torch.device, launch: Callable[..., Tensor] | None = None
) -> dict[str, Any]:
    """Try every candidate on random tokens; a row for `samfast.attention.active_configs.use`.

    launch   (config, qkv, table_h, table_w, pad, shape) -> the kernel's answer; None: the kernel
             itself
    returns  gpu, capability, window, dtype, dim, the best config, its milliseconds, and `tried`:
             for each candidate its relative error and milliseconds, or why it has none. A candidate
             whose error against float64 is more than twice that of the reference in the same dtype
             is never timed
    Raises RuntimeError if no candidate is right.
    """
    run = launch or _launch
    name, capability = active_configs.gpu(device)
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int, spread: float = 1.0) -> Tensor:
        return (torch.randn(*sizes, generator=generator, device=device) * spread).to(shape.dtype)

    channels = shape.num_heads * shape.dim
    side_h, side_w = (shape.window, shape.window) if shape.window else shape.grid
    qkv = random(shape.batch, *shape.grid, 3 * channels)
    tables = (
        random(2 * side_h - 1, shape.dim, spread=0.2),
        random(2 * side_w - 1, shape.dim, spread=0.2),
    )
    pad = random(3 * channels)

    def judge(dtype: torch.dtype) -> Tensor:
        one, *rest = (t.to(dtype) for t in (qkv[:1], *tables, pad))
        options = {"num_heads": shape.num_heads, "window": shape.window, "pad": rest[2]}
        return reference.attend(one, rest[0], rest[1], **options).double()  # type: ignore[arg-type]

    truth = judge(torch.float64)
    allowed = max(2 * _error(judge(shape.dtype), truth), FLOOR)
    tried: list[dict[str, Any]] = []
    for config in candidates(bool(shape.window), shape.dtype, capability):
        row: dict[str, Any] = {
            "config": asdict(config),
            "error": None,
            "milliseconds": None,
            "refused": None,
        }
        tried.append(row)
        try:
            row["error"] = _error(run(config, qkv, *tables, pad, shape)[:1].double(), truth)
            if row["error"] <= allowed:
                launch = partial(run, config, qkv, *tables, pad, shape)
                row["milliseconds"] = _milliseconds(launch, device)
            else:
                row["refused"] = (
                    f"relative error {row['error']:.1e}, at most {allowed:.1e} is allowed"
                )
        except Exception as error:  # what a compiler or a driver raises for a shape it cannot take
            row["refused"] = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
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


def _launch(
    config: Config, qkv: Tensor, table_h: Tensor, table_w: Tensor, pad: Tensor, shape: Shape
) -> Tensor:
    from samfast.attention.kernels import global_attention, window_attention

    if shape.window:
        return window_attention.launch(
            qkv, table_h, table_w, pad, shape.num_heads, shape.window, config
        )
    return global_attention.launch(qkv, table_h, table_w, shape.num_heads, config)


def _error(answer: Tensor, truth: Tensor) -> float:
    error = float((answer - truth).norm() / truth.norm())
    return error if error == error else float("inf")  # NaN is as wrong as can be


def _milliseconds(
    work: Callable[[], Tensor], device: torch.device, repeats: int = 7, together: int = 8
) -> float:
    """Median of some runs after a warm-up, by the GPU's events; several at once, so that launching
    is hidden.
    """
    if device.type != "cuda":
        raise RuntimeError("kernels are timed on a GPU only")
    work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        torch.cuda._sleep(2_000_000)  # type: ignore[no-untyped-call]  # a millisecond, for the host to get ahead
        start.record()
        for _ in range(together):
            work()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / together)
    return statistics.median(times)
