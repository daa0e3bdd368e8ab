"""The greedy pass of non-maximum suppression, which takes one box after another, without asking the
host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["count"])
def _greedy(overlaps, kept, count, words, BLOCK: tl.constexpr):
    """One program; which boxes are gone is a vector of words that it holds."""
    word = tl.arange(0, BLOCK)
    gone = tl.zeros((BLOCK,), tl.int32)
    for box in range(count):
        row = tl.load(overlaps + box * words + word, mask=word < words, other=0)
        own = tl.sum(tl.where(word == box // 32, gone, 0), axis=0)
        stays = ((own >> (box % 32)) & 1) == 0
        gone = tl.where(stays, gone | row, gone)
        tl.store(kept + box, stays.to(tl.uint8))


def launch(overlaps: Tensor) -> Tensor:
    """Which boxes stay.

    overlaps  (N, words) int32: bit b of word k of row i says that box i suppresses box 32 k + b if
              it stays itself; what is said of boxes up to i is ignored
    returns   (N,) bool
    """
    count, words = overlaps.shape
    kept = torch.empty(count, dtype=torch.bool, device=overlaps.device)
    if count:
        block = triton.next_power_of_2(words)
        _greedy[(1,)](overlaps, kept.view(torch.uint8), count, words, BLOCK=block, num_warps=1)
    return kept
