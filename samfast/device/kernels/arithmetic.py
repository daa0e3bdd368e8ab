"""Numbers and settings that the attention kernels share."""

from __future__ import annotations

import torch

LOG2_E = 1.4426950408889634
"""Scores are scaled by log2(e), so that the softmax takes exp2, which is one instruction."""


def dot_precision(dtype: torch.dtype) -> str:
    """`input_precision` of Triton's dot: float32 as three products of TF32."""
    return "tf32x3" if dtype == torch.float32 else "tf32"
