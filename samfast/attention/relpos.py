"""Decomposed relative position (MViTv2, Li et al. 2022, eq. 4; the original's `get_rel_pos`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_table(table: Tensor, size: int) -> Tensor:
    """A table of relative positions (L, d) for a side of `size` tokens: (2 * size - 1, d).

    A table of another length is interpolated linearly, as in the original.
    """
    length = 2 * size - 1
    if table.shape[0] == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T


def relative(table: Tensor, size: int) -> Tensor:
    """(2 * size - 1, d) -> (size, size, d): entry [q, k] is table[q - k + size - 1].

    Overlapping slices of the reversed table instead of an index tensor: nothing is copied to the
    device and nothing synchronises.
    """
    return table.flip(0).unfold(0, size, 1).flip(0).transpose(1, 2)


def terms(
    q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """The two position terms of the scores.

    q        (B, heads, height * width, d), unscaled
    returns  rel_h (B, heads, height * width, height) and rel_w (B, heads, height * width, width)
    """
    batch, heads, _, dim = q.shape
    grid = q.reshape(batch, heads, height, width, dim)
    r_h = relative(resize_table(rel_pos_h.to(q.dtype), height), height)
    r_w = relative(resize_table(rel_pos_w.to(q.dtype), width), width)
    rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid, r_h)
    rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid, r_w)
    return rel_h.flatten(2, 3), rel_w.flatten(2, 3)
