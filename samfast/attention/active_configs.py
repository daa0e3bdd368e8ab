"""The configuration that each attention kernel runs with: tuned on this GPU, else the default."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch

from samfast.attention.kernels.tunables import Config, candidates, default

Key = tuple[bool, torch.dtype, int]
"""Window or not, dtype, width of a head."""

_tuned: dict[tuple[str, Key], Config] = {}


def config(window: bool, dtype: torch.dtype, dim: int, device: torch.device) -> Config:
    """The configuration for attention in windows or global attention."""
    name, capability = gpu(device)
    return _tuned.get((name, (window, dtype, dim))) or default(window, dtype, dim, capability)


def use(rows: Iterable[dict[str, Any]]) -> None:
    """Use rows that `samfast.attention.tuning.tune` returned, in this or an earlier process.

    Raises ValueError if a row's configuration is not a candidate of this version for its GPU.
    """
    checked = {}
    for row in rows:
        try:
            chosen = Config(**row["config"])
            window, dtype = bool(row["window"]), getattr(torch, str(row["dtype"]))
            major, minor = row["capability"]
            known = candidates(window, dtype, (int(major), int(minor)))
            key = (str(row["gpu"]), (window, dtype, int(row["dim"])))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a tuned configuration: {row!r}") from error
        if chosen not in known:
            raise ValueError(f"{chosen} is not a candidate of this version")
        checked[key] = chosen
    _tuned.update(checked)


def forget() -> None:
    """Use the defaults again."""
    _tuned.clear()


@functools.cache
def gpu(device: torch.device) -> tuple[str, tuple[int, int]]:
    """The GPU's name and compute capability; "cpu" and (0, 0) for the interpreter."""
    if device.type != "cuda":
        return "cpu", (0, 0)
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
