"""What the kernels of `postprocess_tiles` and `hopper_tiles` are told about interpolation."""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-4
"""Relative slack above the rounding of interpolation."""


def scale(source: int, target: int) -> float:
    """The scale as PyTorch has it, divided in float32."""
    return float(np.float32(source) / np.float32(target))


def beyond(level: float, side: int) -> float:
    """A level so far beyond a threshold that rounded blends of logits there are beyond it too."""
    return level + side * ROUNDING * (1 + abs(level))
