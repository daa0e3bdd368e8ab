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
    padding = words(height) * BITS - height
    rows = F.pad(masks.to(torch.bool).view(torch.uint8), (0, 0, 0, padding))
    rows = rows.view(count, words(height) * BITS // 8, 8, width)
    packed = rows[:, :, 0].clone()
    for bit in range(1, 8):
        packed |= rows[:, :, bit] << bit
    # Rows are packed before columns are turned, an eighth of the bytes. The bytes of a word follow
    # each other from the lowest on, as on every processor that torch runs on.
    return packed.mT.clone(memory_format=torch.contiguous_format).view(torch.int32)


def bits(device: torch.device) -> Tensor:
    """(32,) int32: the numbers of a word's bits."""
    return torch.arange(BITS, dtype=torch.int32, device=device)


def ones(words: Tensor) -> Tensor:
    """Set bits of each int32, its sign bit included: sums of pairs, of fours, of eights."""
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    return (((words + (words >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24
