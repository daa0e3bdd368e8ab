"""Attention with the bias written out: slow, plain, and what the others are judged against."""

from __future__ import annotations

from torch import Tensor

from samfast.attention.heads import merge, split
from samfast.attention.relpos import terms


def attend(
    qkv: Tensor,
    rel_pos_h: Tensor | None,
    rel_pos_w: Tensor | None,
    *,
    num_heads: int,
    window: int,
    pad: Tensor | None,
) -> Tensor:
    """Attention with decomposed relative position (SAM, section A; MViTv2, eq. 4).

    qkv        (B, H, W, 3 * C) projected real tokens, not partitioned
    rel_pos_h  (2 * S - 1, C / num_heads), S = window or H, interpolated if of another length;
               rel_pos_w likewise with W. Both None: no positions
    window     side of a window in tokens, or 0 for global attention
    pad        (3 * C,) q, k, v of a padding token: qkv(0), the bias of a plain Linear; None: zeros
    returns    (B, H, W, C)
    """
    _, grid_h, grid_w, _ = qkv.shape
    q, k, v, height, width = split(qkv, num_heads, window, pad)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if rel_pos_h is not None and rel_pos_w is not None:
        rel_h, rel_w = terms(q, rel_pos_h, rel_pos_w, height, width)
        scores = scores.unflatten(-1, (height, width)) + rel_h[..., None] + rel_w[..., None, :]
        scores = scores.flatten(-2)
    return merge(scores.softmax(dim=-1) @ v, window, grid_h, grid_w)
