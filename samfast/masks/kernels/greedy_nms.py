"""The greedy pass of non-maximum suppression, box after box, on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["count"])
def _greedy(overlaps, kept, count, words, BLOCK: tl.constexpr):
    """One program, which holds the suppressed boxes as a vector of words."""
    word = tl.arange(0, BLOCK)
    suppressed = tl.zeros((BLOCK,), tl.int32)
    for box in range(count):
        row = tl.load(overlaps + box * words + word, mask=word < words, other=0)
        box_word = tl.sum(tl.where(word == box // 32, suppressed, 0), axis=0)
        stays = ((box_word >> (box % 32)) & 1) == 0
        suppressed = tl.where(stays, suppressed | row, suppressed)
        tl.store(kept + box, stays.to(tl.uint8))


def launch(overlaps: Tensor) -> Tensor:
    """Whether each box stays.

    overlaps  (N, words) int32: bit b of word k of row i is set if box i, where it stays, suppresses
              box 32 k + b; bits of boxes up to i are ignored
    returns   (N,) bool
    """
    count, words = overlaps.shape
    kept = torch.empty(count, dtype=torch.bool, device=overlaps.device)
    if count:
        block = triton.next_power_of_2(words)
        _greedy[(1,)](overlaps, kept.view(torch.uint8), count, words, BLOCK=block, num_warps=1)
    return kept
