"""Attention in blocks that stay in a CPU's cache: three matrix products and a softmax, in place.

torch's CPU flash kernel reads the relative positions as a mask, which is slower than adding them
oneself, and whole tensors of windows (tens of MiB) cost more in page faults than in arithmetic. So
here a band of windows, or a few rows of queries, is cut out, answered in buffers that are used
again, and written where it belongs. No gradients; plain torch, so it runs on every device, but it
is meant for CPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.attention.relpos import resize_table
from samfast.attention.windowing import padded_grid
from samfast.errors import RecipeError

BLOCK_ELEMENTS = 1 << 21
"""So many scores are held at a time: large enough for the matrix products, small enough for the
cache."""


def attend(
    qkv: Tensor,
    rel_pos_h: Tensor | None,
    rel_pos_w: Tensor | None,
    *,
    num_heads: int,
    window: int,
    pad: Tensor | None,
) -> Tensor:
    """As `samfast.attention.reference.attend`; RecipeError if gradients are wanted."""
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
            answer, scores = _answer(heads, table, height, width, scores)
            out[image] = answer.view(num_heads, height, width, dim).permute(1, 2, 0, 3)
            continue
        for top in range(0, height, window):
            rows = min(window, height - top)
            heads = _band(qkv[image, top : top + rows], num_heads, window, pad)
            answer, scores = _answer(heads, table, window, window, scores)
            tokens = answer.view(-1, num_heads, window, window, dim)[:, :, :rows]
            # (windows across, heads, rows, window, d) -> (rows, windows across, window, heads, d)
            tokens = tokens.permute(2, 0, 3, 1, 4).reshape(rows, -1, num_heads, dim)
            out[image, top : top + rows] = tokens[:, :width]
    return out.flatten(3)


def _band(tokens: Tensor, num_heads: int, window: int, pad: Tensor | None) -> Tensor:
    """A row of windows, (rows, width, 3 * C) with rows <= window -> (3, windows * heads, window **
    2, d).
    """
    rows, width, channels = tokens.shape
    padded_h, padded_w = padded_grid(rows, width, window)
    if (padded_h, padded_w) != (rows, width):
        padded = tokens.new_zeros(padded_h, padded_w, channels)
        if pad is not None:
            padded[rows:] = pad.to(tokens.dtype)
            padded[:rows, width:] = pad.to(tokens.dtype)
        padded[:rows, :width] = tokens
        tokens = padded
    split = tokens.reshape(
        window, padded_w // window, window, 3, num_heads, channels // (3 * num_heads)
    )
    return split.permute(3, 1, 4, 0, 2, 5).flatten(1, 2).flatten(2, 3)


def _answer(
    heads: Tensor, table: Tensor | None, height: int, width: int, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of every item with itself, a block of items or of query rows at a time.

    heads    (3, items, height * width, d): q, k, v
    scores   a buffer from an earlier call, used again if it is large enough
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
            asked = slice(top * width, min(height, top + rows) * width)
            block = some_q[:, asked].contiguous()
            shape = (*block.shape[:2], tokens)
            weights = scores[: shape[0] * shape[1] * shape[2]].view(shape)
            if table is None:
                torch.baddbmm(weights, block, keys, beta=0, alpha=dim**-0.5, out=weights)
            else:
                _write_bias(weights, block @ table, top, height, width)
                torch.baddbmm(weights, block, keys, alpha=dim**-0.5, out=weights)
            torch.softmax(weights, dim=-1, out=weights)
            torch.bmm(weights, values, out=out[part, asked])
    return out, scores


def _flipped_tables(
    rel_pos_h: Tensor | None, rel_pos_w: Tensor | None, height: int, width: int, like: Tensor
) -> Tensor | None:
    """(d, 2 * height - 1 + 2 * width - 1): both tables, their offsets running from the largest to
    the smallest.
    """
    if rel_pos_h is None or rel_pos_w is None:
        return None
    both = [
        resize_table(rel_pos_h.to(like.dtype), height),
        resize_table(rel_pos_w.to(like.dtype), width),
    ]
    return torch.cat([table.flip(0) for table in both]).T.contiguous()


def _write_bias(scores: Tensor, products: Tensor, top: int, height: int, width: int) -> None:
    """The addends of the scores of whole rows of queries, the first of which is row `top`.

    scores    (items, rows * width, height * width), overwritten
    products  (items, rows * width, 2 * height - 1 + 2 * width - 1): the queries times the flipped
              tables. The keys' rows 0, 1, ... of a query in row r are columns height - 1 - r and
              the following ones, so a view whose stride over the query's rows is one short picks
              them without a copy.
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
