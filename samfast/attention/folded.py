"""Relative positions folded into the head dimension, so that plain flash attention computes them.

The position terms are linear in q, hence `q' = [q, rel_h * sqrt(d), rel_w * sqrt(d)]` and
`k' = [k, onehot(row), onehot(column)]` give `q' k'^T / sqrt(d)` = the biased score, exactly. Memory
stays O(tokens), and autograd works. The head dimension grows from d to d + height + width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    """As `samfast.attention.reference.attend`."""
    _, grid_h, grid_w, _ = qkv.shape
    q, k, v, height, width = split(qkv, num_heads, window, pad)
    dim = q.shape[-1]
    if rel_pos_h is None or rel_pos_w is None:
        return merge(F.scaled_dot_product_attention(q, k, v), window, grid_h, grid_w)
    rel_h, rel_w = terms(q, rel_pos_h, rel_pos_w, height, width)
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
    return merge(out[..., :dim], window, grid_h, grid_w)


def onehot(height: int, width: int, like: Tensor) -> Tensor:
    """(height * width, height + width): each token's row and column as one-hot vectors."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device)
    columns = torch.eye(width, dtype=like.dtype, device=like.device)
    return torch.cat([rows.repeat_interleave(width, dim=0), columns.repeat(height, 1)], dim=-1)
