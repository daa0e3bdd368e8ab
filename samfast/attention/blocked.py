"""Attention in blocks that stay in a CPU's cache: three matrix products and a softmax, in place.

torch's CPU flash kernel reads the relative positions as a mask, which is slower than adding them to
the scores, and whole tensors of windows (tens of MiB) cost more in page faults than in arithmetic.
So a row of windows, or a few rows of queries, is computed at a time, in buffers that are reused.
Without gradients; it runs on every device, but is meant for CPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.attention.relpos import resize_table
from samfast.attention.windowing import pad_tokens
from samfast.errors import RecipeError

BLOCK_ELEMENTS = 1 << 21
"""Scores held at a time: enough for efficient matrix products, few enough for the cache."""


def attend(
    qkv: Tensor,
    rel_pos_h: Tensor | None,
    rel_pos_w: Tensor | None,
    *,
    num_heads: int,
    window: int,
    pad: Tensor | None,
) -> Tensor:
    """As `samfast.attention.reference.attend`; RecipeError if gradients are needed."""
    if torch.is_grad_enabled() and qkv.requires_grad:
        raise RecipeError(
            "attention 'blocked' works in place and has no gradients; "
            "choose 'folded' or 'sdpa' for training, or call it under torch.no_grad()"
        )
    batch, height, width, channels = qkv.shape
    dim = channels // (3 * num_heads)
    span = (window, window) if window else (height, width)
    table = _flipped_tables(rel_pos_h, rel_pos_w, *span, like=qkv)
    out = qkv.new_empty(batch, height, width, num_heads, dim)
    scores = qkv.new_empty(0)
    for image in range(batch):
        if not window:
            heads = qkv[image].reshape(height * width, 3, num_heads, dim).permute(1, 2, 0, 3)
            attended, scores = _attend(heads, table, height, width, scores)
            out[image] = attended.view(num_heads, height, width, dim).permute(1, 2, 0, 3)
            continue
        for top in range(0, height, window):
            rows = min(window, height - top)
            heads = _windows(qkv[image, top : top + rows], num_heads, window, pad)
            attended, scores = _attend(heads, table, window, window, scores)
            tokens = attended.view(-1, num_heads, window, window, dim)[:, :, :rows]
            # (windows across, heads, rows, window, d) -> (rows, windows across, window, heads, d)
            tokens = tokens.permute(2, 0, 3, 1, 4).reshape(rows, -1, num_heads, dim)
            out[image, top : top + rows] = tokens[:, :width]
    return out.flatten(3)


def _windows(tokens: Tensor, num_heads: int, window: int, pad: Tensor | None) -> Tensor:
    """One row of windows, (rows <= window, W, 3 * C) -> (3, windows * heads, window ** 2, d)."""
    tokens = pad_tokens(tokens[None], window, pad)
    split = tokens.reshape(window, -1, window, 3, num_heads, tokens.shape[-1] // (3 * num_heads))
    return split.permute(3, 1, 4, 0, 2, 5).flatten(1, 2).flatten(2, 3)


def _attend(
    heads: Tensor, table: Tensor | None, height: int, width: int, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention within each item, a block of items or of query rows at a time.

    heads    (3, items, height * width, d): q, k, v
    scores   the buffer of an earlier call, reused if it is large enough
    returns  (items, height * width, d), and the buffer
    """
    q, k, v = heads.unbind(0)
    items, tokens, dim = q.shape
    together = max(1, BLOCK_ELEMENTS // (tokens * tokens))
    rows = max(1, min(height, BLOCK_ELEMENTS // (width * tokens)))
    size = min(items, together) * rows * width * tokens
    if scores.numel() < size:
        scores = q.new_empty(size)
    out = q.new_empty(items, tokens, dim)
    for first in range(0, items, together):
        part = slice(first, first + together)
        some_q, keys, values = q[part], k[part].contiguous().transpose(1, 2), v[part].contiguous()
        for top in range(0, height, rows):
            queries = slice(top * width, min(height, top + rows) * width)
            block = some_q[:, queries].contiguous()
            shape = (*block.shape[:2], tokens)
            weights = scores[: shape[0] * shape[1] * shape[2]].view(shape)
            if table is None:
                torch.baddbmm(weights, block, keys, beta=0, alpha=dim**-0.5, out=weights)
            else:
                _write_bias(weights, block @ table, top, height, width)
                torch.baddbmm(weights, block, keys, alpha=dim**-0.5, out=weights)
            torch.softmax(weights, dim=-1, out=weights)
            torch.bmm(weights, values, out=out[part, queries])
    return out, scores


def _flipped_tables(
    rel_pos_h: Tensor | None, rel_pos_w: Tensor | None, height: int, width: int, like: Tensor
) -> Tensor | None:
    """(d, 2 * height - 1 + 2 * width - 1): both tables, from the largest offset to the smallest."""
    if rel_pos_h is None or rel_pos_w is None:
        return None
    table_h = resize_table(rel_pos_h.to(like.dtype), height).flip(0)
    table_w = resize_table(rel_pos_w.to(like.dtype), width).flip(0)
    return torch.cat([table_h, table_w]).T.contiguous()


def _write_bias(scores: Tensor, products: Tensor, top: int, height: int, width: int) -> None:
    """Write the position terms of the scores of whole rows of queries, from row `top` on.

    scores    (items, rows * width, height * width), overwritten
    products  (items, rows * width, 2 * height - 1 + 2 * width - 1): the queries times the flipped
              tables. For a query in row r, the terms of the keys' rows 0, 1, ... are the columns
              height - 1 - r and following: a view whose stride over query rows is one too short.
    """
    items, queries, _ = scores.shape
    length = products.shape[-1]
    shape = (items, queries // width, width)
    item, row = queries * length, width * length
    rel_h = products.as_strided((*shape, height), (item, row - 1, length, 1), height - 1 - top)
    rel_w = products.as_strided(
        (*shape, width), (item, row, length - 1, 1), 2 * height - 1 + width - 1
    )
    torch.add(rel_h[..., None], rel_w[..., None, :], out=scores.view(*shape, height, width))
