"""Masks of one bit a pixel, column by column as COCO's runs go.

Word k of column x holds the pixels of rows 32 k to 32 k + 31, the uppermost in the lowest bit; bits
below the image are zero. They take an eighth of the memory of bool masks, and runs are read off
whole words, most of which have no change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = 32


def words(height: int) -> int:
    """Words of a column."""
    return -(-height // BITS)


def pack(masks: Tensor) -> Tensor:
    """(N, H, W) bool -> (N, W, ceil(H / 32)) int32."""
    count, height, width = masks.shape
    padded = F.pad(masks.mT, (0, words(height) * BITS - height))
    columns = padded.view(count, width, words(height), BITS)
    return (columns.to(torch.int32) << bits(masks.device)).sum(-1, dtype=torch.int32)


def bits(device: torch.device) -> Tensor:
    """(32,) int32: the numbers of a word's bits."""
    return torch.arange(BITS, dtype=torch.int32, device=device)
