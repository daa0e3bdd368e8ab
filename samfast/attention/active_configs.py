"""Which configuration each kernel runs with: what tuning found on this GPU, else the default for
its kind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch

from samfast.attention.kernels.tunables import Config, candidates, default

Key = tuple[bool, torch.dtype, int]
"""Window or not, dtype, width of a head."""

_found: dict[tuple[str, Key], Config] = {}


def config(window: bool, dtype: torch.dtype, dim: int, device: torch.device) -> Config:
    """The configuration for attention in windows or global attention."""
    name, capability = gpu(device)
    return _found.get((name, (window, dtype, dim))) or default(window, dtype, dim, capability)


def use(rows: Iterable[dict[str, Any]]) -> None:
    """Use what `samfast.attention.tuning.tune` returned, here or in an earlier process.

    Raises ValueError for a row that names no candidate of its GPU: it was not checked by this
    version.
    """
    checked = []
    for row in rows:
        try:
            chosen = Config(**row["config"])
            key = (bool(row["window"]), getattr(torch, str(row["dtype"])), int(row["dim"]))
            known = candidates(
                key[0], key[1], (int(row["capability"][0]), int(row["capability"][1]))
            )
            name = str(row["gpu"])
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"not a tuned configuration: {row!r}") from error
        if chosen not in known:
            raise ValueError(f"{chosen} is no candidate of this version")
        checked.append(((name, key), chosen))
    _found.update(checked)


def forget() -> None:
    """Use the defaults again."""
    _found.clear()


@functools.cache
def gpu(device: torch.device) -> tuple[str, tuple[int, int]]:
    """The GPU's name and compute capability; "cpu" and (0, 0) for the interpreter."""
    if device.type != "cuda":
        return "cpu", (0, 0)
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
