"""`scaled_dot_product_attention` with the relative positions as its additive mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.attention.heads import over_heads

CPU_BIAS_ELEMENTS = 1 << 21
"""Scores whose bias is written at a time on a CPU, so that it stays in the cache."""


@over_heads
def attend(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor | None, rel_w: Tensor | None) -> Tensor:
    """As `samfast.attention.reference.attend`."""
    if rel_h is None or rel_w is None:
        return F.scaled_dot_product_attention(q, k, v)
    if q.device.type == "cpu" and not torch.is_grad_enabled():
        return _in_chunks(q, k, v, rel_h, rel_w)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_bias(rel_h, rel_w))


def _bias(rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """(..., n, height) and (..., n, width) -> (..., n, height * width)."""
    return (rel_h[..., None] + rel_w[..., None, :]).flatten(-2)


def _in_chunks(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """The same attention, a few heads or a few query rows at a time."""
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    out = torch.empty((batch, queries, heads, dim), dtype=q.dtype).transpose(1, 2)
    if queries * keys * heads <= CPU_BIAS_ELEMENTS:  # whole windows
        step = max(1, CPU_BIAS_ELEMENTS // (queries * keys * heads))
        for b in range(0, batch, step):
            part = slice(b, b + step)
            bias = _bias(rel_h[part], rel_w[part])
            out[part] = F.scaled_dot_product_attention(q[part], k[part], v[part], attn_mask=bias)
        return out
    step = max(1, CPU_BIAS_ELEMENTS // keys)
    for b in range(batch):
        for h in range(heads):
            one = (slice(b, b + 1), slice(h, h + 1))
            key, value = k[one].contiguous(), v[one].contiguous()
            for start in range(0, queries, step):
                rows = (*one, slice(start, start + step))
                bias = _bias(rel_h[rows], rel_w[rows])
                out[rows] = F.scaled_dot_product_attention(q[rows], key, value, attn_mask=bias)
    return out
