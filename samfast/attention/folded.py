"""Relative positions folded into the head dimension, so that plain flash attention computes them.

The position terms are linear in q, hence `q' = [q, rel_h * sqrt(d), rel_w * sqrt(d)]` and
`k' = [k, onehot(row), onehot(column)]` give `q' k'^T / sqrt(d)` = the biased score, exactly. Memory
stays O(tokens), and autograd works. The head dimension grows from d to d + height + width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.attention.heads import over_heads


@over_heads
def attend(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor | None, rel_w: Tensor | None) -> Tensor:
    """As `samfast.attention.reference.attend`."""
    if rel_h is None or rel_w is None:
        return F.scaled_dot_product_attention(q, k, v)
    dim, height, width = q.shape[-1], rel_h.shape[-1], rel_w.shape[-1]
    root = dim**0.5
    spare = -(dim + height + width) % 8  # fused kernels need a multiple of eight
    parts = [q, rel_h * root, rel_w * root]
    folded_q = F.pad(torch.cat(parts, dim=-1), (0, spare))
    position = F.pad(onehot(height, width, q), (0, spare)).expand(*k.shape[:-1], -1)
    folded_k = torch.cat([k, position], dim=-1)
    if q.device.type == "cpu":
        # The CPU's flash kernel needs v as wide as q; without it scores are materialised.
        v = F.pad(v, (0, folded_q.shape[-1] - dim))
    out = F.scaled_dot_product_attention(folded_q, folded_k, v, scale=dim**-0.5)
    return out[..., :dim]


def onehot(height: int, width: int, like: Tensor) -> Tensor:
    """(height * width, height + width): each token's row and column as one-hot vectors."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device)
    columns = torch.eye(width, dtype=like.dtype, device=like.device)
    return torch.cat([rows.repeat_interleave(width, dim=0), columns.repeat(height, 1)], dim=-1)
