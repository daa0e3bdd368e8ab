"""Which boxes overlap which too much, as bits.

The numbers are those of `samfast.masks.nms.keep`, to the last bit: a decision at the threshold must
not differ.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.masks.bit_masks import words

WORDS = 8
"""Words of a program."""


@triton.jit
def _box(boxes, index, inside):
    """XYXY and area."""
    place = boxes + index * 4
    x0 = tl.load(place, mask=inside, other=0).to(tl.float32)
    y0 = tl.load(place + 1, mask=inside, other=0).to(tl.float32)
    x1 = tl.load(place + 2, mask=inside, other=0).to(tl.float32)
    y1 = tl.load(place + 3, mask=inside, other=0).to(tl.float32)
    return x0, y0, x1, y1, (x1 - x0) * (y1 - y0)


@triton.jit(do_not_specialize=["count", "words"])
def _overlaps(boxes, found, count, words, threshold, WORDS: tl.constexpr):
    """One box with 32 others for each word."""
    row = tl.program_id(0)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    other = word[:, None] * 32 + bit[None, :]
    x0, y0, x1, y1, area = _box(boxes, row, True)
    left, upper, right, lower, own = _box(boxes, other, other < count)
    width = tl.maximum(tl.minimum(x1, right) - tl.maximum(x0, left), 0.0)
    height = tl.maximum(tl.minimum(y1, lower) - tl.maximum(y0, upper), 0.0)
    inter = width * height
    union = area + own - inter
    sound = (other < count) & (
        union != 0
    )  # of two boxes without area NumPy has NaN, which is above nothing
    # `/` may be off by 2 ulp.
    above = sound & (tl.div_rn(inter, tl.where(sound, union, 1.0)) > threshold)
    bits = tl.sum(above.to(tl.int32) << bit[None, :], axis=1)
    tl.store(found + row * words + word, bits, mask=word < words)


def launch(boxes: Tensor, threshold: float) -> Tensor:
    """Which pairs of boxes (N, 4) XYXY have an IoU above the threshold, as bits (N, ceil(N / 32))
    int32.

    Bit b of word k of row i is about the boxes i and 32 k + b. There must be at least one box; they
    may be of any dtype, and are compared in float32.
    """
    count, wide = len(boxes), words(len(boxes))
    found = torch.empty((count, wide), dtype=torch.int32, device=boxes.device)
    # A sum and a product must stay two roundings.
    _overlaps[(count, triton.cdiv(wide, WORDS))](
        boxes.contiguous(),
        found,
        count,
        wide,
        below(threshold),
        WORDS=WORDS,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return found


def below(threshold: float) -> float:
    """The largest float32 that is not above: a float32 is above both or neither."""
    near = np.float32(threshold)
    return float(near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf)))
