"""Attention by oneDNN's matrix products, for CPUs.

The float32 products of torch's BLAS, MKL, run at half the rate of oneDNN's on AMD's processors. In
bfloat16 the products are the same, but the position terms of windows are part of one product
instead of a pass over the scores. Without gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.attention.relpos import resize_table
from samfast.attention.windowing import pad_tokens
from samfast.device import onednn_products
from samfast.errors import RecipeError

BLOCK_BYTES = 1 << 21
"""Scores of global attention held at a time: few enough for the cache, and for memory that glibc
keeps. With four times as many, a layer in float32 takes half as long again."""


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
            "attention 'onednn' has no gradients; choose 'folded' or 'sdpa' for training, or call "
            "it under torch.no_grad()"
        )
    onednn_products.check(qkv, "attention 'onednn'")
    batch, height, width, channels = qkv.shape
    dim = channels // (3 * num_heads)
    span = (window, window) if window else (height, width)
    table = _flipped_tables(rel_pos_h, rel_pos_w, *span, like=qkv)
    out = qkv.new_empty(batch, height, width, num_heads, dim)
    for image in range(batch):
        if not window:
            _global(qkv[image], table, out[image])
            continue
        for top in range(0, height, window):
            rows = slice(top, min(height, top + window))
            _row_of_windows(qkv[image, rows], table, window, pad, out[image, rows])
    return out.flatten(3)


def _row_of_windows(
    tokens: Tensor, table: Tensor | None, window: int, pad: Tensor | None, out: Tensor
) -> None:
    """Windows that lie side by side: tokens (rows <= window, W, 3 * C) -> out (rows, W, heads, d).

    The position terms are in the product of queries and keys, as in `samfast.attention.folded`.
    """
    rows, width, heads, dim = out.shape
    padded = pad_tokens(tokens[None], window, pad)
    split = padded.view(window, -1, window, 3, heads, dim)
    q, k, v = split.permute(3, 1, 4, 0, 2, 5).flatten(1, 2).flatten(2, 3).unbind(0)
    if table is None:
        scores = torch.bmm(q * dim**-0.5, k.mT)
    else:
        folded = F.pad(q * dim**-0.5, (0, 2 * window))
        products = onednn_products.product(q.reshape(-1, dim), table).view(*q.shape[:2], -1)
        rel_h, rel_w = _terms(products, 0, window, window)
        grid = folded.view(-1, window, window, dim + 2 * window)
        grid[..., dim : dim + window] = rel_h
        grid[..., dim + window :] = rel_w
        places = torch.arange(window)
        onehot = torch.cat(
            [
                F.one_hot(places.repeat_interleave(window), window),
                F.one_hot(places.repeat(window), window),
            ],
            dim=1,
        )
        keys = torch.cat([k, onehot.to(k.dtype).expand(len(k), -1, -1)], dim=-1)
        scores = torch.bmm(folded, keys.mT)
    torch.softmax(scores, dim=-1, out=scores)
    answers = torch.bmm(scores, v).view(-1, heads, window, window, dim)[:, :, :rows]
    # (windows across, heads, rows, window, d) -> (rows, windows across, window, heads, d)
    out.copy_(answers.permute(2, 0, 3, 1, 4).reshape(rows, -1, heads, dim)[:, :width])


def _global(tokens: Tensor, table: Tensor | None, out: Tensor) -> None:
    """All tokens of an image, (H, W, 3 * C) -> out (H, W, heads, d), some rows at a time."""
    height, width, heads, dim = out.shape
    split = tokens.reshape(height * width, 3, heads, dim)
    row_bytes = width * height * width * tokens.element_size()
    rows = max(1, min(height, BLOCK_BYTES // row_bytes))
    buffer = tokens.new_empty(rows * width, height * width)
    for head in range(heads):
        queries, keys, values = (split[:, part, head] for part in range(3))
        packed_keys = onednn_products.pack(keys.contiguous())
        packed_values = onednn_products.pack(values.T.contiguous())
        for top in range(0, height, rows):
            block = queries[top * width : (top + rows) * width]
            bias = None
            if table is not None:
                products = onednn_products.product(block.contiguous(), table)[None]
                rel_h, rel_w = _terms(products, top, height, width)
                bias = buffer[: len(block)]
                shape = (1, len(block) // width, width, height, width)
                torch.add(rel_h[..., None], rel_w[..., None, :], out=bias.view(shape))
            scores = onednn_products.product(block * dim**-0.5, packed_keys, add=bias)
            torch.softmax(scores, dim=-1, out=scores)
            answers = onednn_products.product(scores, packed_values)
            out[top : top + rows, :, head] = answers.view(-1, width, dim)


def _flipped_tables(
    rel_pos_h: Tensor | None, rel_pos_w: Tensor | None, height: int, width: int, like: Tensor
) -> Tensor | None:
    """(2 * height - 1 + 2 * width - 1, d), packed: both tables, from the largest offset to the
    smallest.
    """
    if rel_pos_h is None or rel_pos_w is None:
        return None
    table_h = resize_table(rel_pos_h.to(like.dtype), height).flip(0)
    table_w = resize_table(rel_pos_w.to(like.dtype), width).flip(0)
    return onednn_products.pack(torch.cat([table_h, table_w]))


def _terms(products: Tensor, top: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The position terms of whole rows of queries, from row `top` on.

    products  (items, rows * width, 2 * height - 1 + 2 * width - 1): the queries times the flipped
              tables. For a query in row r, the terms of the keys' rows 0, 1, ... are the columns
              height - 1 - r and following: a view whose stride over query rows is one too short.
    returns   views (items, rows, width, height) and (items, rows, width, width)
    """
    items, queries, length = products.shape
    shape = (items, queries // width, width)
    item, row = queries * length, width * length
    rel_h = products.as_strided((*shape, height), (item, row - 1, length, 1), height - 1 - top)
    rel_w = products.as_strided(
        (*shape, width), (item, row, length - 1, 1), 2 * height - 1 + width - 1
    )
    return rel_h, rel_w
