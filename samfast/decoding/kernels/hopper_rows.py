"""How the CUDA C++ kernels of a decoder take rows of images and of tokens."""

from __future__ import annotations

from torch import Tensor

CHANNELS, HEADS = 256, 8
"""What the kernel is written for: the decoder of all models of Segment Anything."""

TILE = 64
"""Places at a time."""

PANEL = 64
"""Channels that lie side by side in shared memory."""


def panels(rows: Tensor) -> Tensor:
    """(..., n, C) -> (..., C / PANEL, n, PANEL), a view."""
    return rows.view(*rows.shape[:-1], -1, PANEL).movedim(-2, -3)
