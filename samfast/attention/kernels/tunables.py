"""The tunable values of the attention kernels: candidates, and defaults from measurements."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """A kernel's tunable values.

    block_m     queries that a program takes at a time
    block_n     keys that a program takes at a time (global attention; in windows it holds all)
    num_warps   warps per program
    num_stages  depth of the software pipeline
    tma         whether the copy engine of a Hopper GPU fetches the keys (global attention)
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    tma: bool = False


HOPPER = (9, 0)

GLOBAL = (
    Config(64, 64, 4, 3, tma=True),
    Config(64, 64, 4, 4, tma=True),
    Config(128, 64, 4, 3, tma=True),
    Config(128, 64, 8, 3, tma=True),
    Config(64, 64, 4, 3),
    Config(64, 64, 4, 2),
    Config(128, 64, 4, 3),
    Config(128, 64, 8, 3),
    Config(128, 32, 8, 4),
)
"""Candidates for global attention in half precision."""

WINDOW = (
    Config(64, 0, 4, 2),
    Config(64, 0, 4, 1),
    Config(64, 0, 8, 1),
    Config(128, 0, 8, 1),
    Config(32, 0, 4, 1),
)
"""Candidates for window attention in half precision."""

GLOBAL_FLOAT32 = (Config(64, 32, 4, 2), Config(32, 32, 4, 2), Config(32, 64, 4, 1))
WINDOW_FLOAT32 = (Config(32, 0, 4, 1), Config(16, 0, 4, 1))
"""Candidates in float32, whose tiles are twice as large."""


def candidates(window: bool, dtype: torch.dtype, capability: tuple[int, int]) -> tuple[Config, ...]:
    """The configurations to try on a GPU of that compute capability."""
    if dtype == torch.float32:
        return WINDOW_FLOAT32 if window else GLOBAL_FLOAT32
    return tuple(c for c in (WINDOW if window else GLOBAL) if capability >= HOPPER or not c.tma)


def default(window: bool, dtype: torch.dtype, dim: int, capability: tuple[int, int]) -> Config:
    """The configuration to use without tuning: the best of the candidates on an H100.

    dim  width of a head
    """
    best = candidates(window, dtype, capability)
    # Queries loaded ahead need memory that wide heads lack. Not measured before Hopper.
    plain = window and dtype != torch.float32 and (dim > 64 or capability < HOPPER)
    return best[1] if plain else best[0]


def split_dim(dim: int) -> tuple[int, int]:
    """A head's width as one or two powers of two from 16: 80 -> (64, 16), 64 -> (64, 0)."""
    first = 16
    while 2 * first <= dim:
        first *= 2
    if dim <= first:
        return first, 0
    second = 16
    while second < dim - first:
        second *= 2
    return first, second
