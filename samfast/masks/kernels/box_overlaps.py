"""The pairs of boxes that overlap too much, as bits.

IoU is that of `samfast.masks.nms.keep` to the last bit: decisions at the threshold must not differ.
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
def _overlaps(boxes, overlaps, count, words, threshold, WORDS: tl.constexpr):
    """One box with 32 others for each word."""
    row = tl.program_id(0)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    other = word[:, None] * 32 + bit[None, :]
    x0, y0, x1, y1, area = _box(boxes, row, True)
    left, upper, right, lower, other_area = _box(boxes, other, other < count)
    width = tl.maximum(tl.minimum(x1, right) - tl.maximum(x0, left), 0.0)
    height = tl.maximum(tl.minimum(y1, lower) - tl.maximum(y0, upper), 0.0)
    inter = width * height
    union = area + other_area - inter
    # The IoU of two boxes without area is NaN in NumPy, which is above no threshold.
    valid = (other < count) & (union != 0)
    # `/` may be off by 2 ulp.
    above = valid & (tl.div_rn(inter, tl.where(valid, union, 1.0)) > threshold)
    bits = tl.sum(above.to(tl.int32) << bit[None, :], axis=1)
    tl.store(overlaps + row * words + word, bits, mask=word < words)


def launch(boxes: Tensor, threshold: float) -> Tensor:
    """Whether each pair of boxes has an IoU above the threshold.

    boxes    (N, 4) XYXY of any dtype, at least one; compared in float32
    returns  (N, ceil(N / 32)) int32: bit b of word k of row i is of the boxes i and 32 k + b
    """
    count, row_words = len(boxes), words(len(boxes))
    overlaps = torch.empty((count, row_words), dtype=torch.int32, device=boxes.device)
    # Without fusion a product and a sum stay two roundings.
    _overlaps[(count, triton.cdiv(row_words, WORDS))](
        boxes.contiguous(),
        overlaps,
        count,
        row_words,
        below(threshold),
        WORDS=WORDS,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return overlaps


def below(threshold: float) -> float:
    """The largest float32 not above the threshold; any float32 is above both or neither."""
    near = np.float32(threshold)
    return float(near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf)))
