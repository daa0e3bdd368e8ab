"""From projected tokens to heads and back; the same for every implementation."""

from __future__ import annotations

from torch import Tensor

from samfast.attention.windowing import partition, unpartition


def split(
    qkv: Tensor, num_heads: int, window: int, pad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """q, k, v of every window (or of the whole grid), and the side lengths they span.

    qkv      (B, H, W, 3 * C)
    returns  q, k, v, each (B', heads, h * w, C / heads), and h, w: B' = B * windows and h = w =
             window, or B' = B and the grid's own height and width when window is 0
    """
    if window:
        qkv = partition(qkv, window, pad)
    batch, height, width, channels = qkv.shape
    heads = qkv.reshape(batch, height * width, 3, num_heads, channels // (3 * num_heads))
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v, height, width


def merge(out: Tensor, window: int, height: int, width: int) -> Tensor:
    """(B', heads, tokens, d) -> (B, height, width, C), windows put back and padding dropped."""
    batch, heads, _, dim = out.shape
    tokens = out.transpose(1, 2)
    if window:
        return unpartition(
            tokens.reshape(batch, window, window, heads * dim), window, height, width
        )
    return tokens.reshape(batch, height, width, heads * dim)
