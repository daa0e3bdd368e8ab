"""From projected tokens to heads, and back."""

from __future__ import annotations

from torch import Tensor

from samfast.attention.windowing import partition, unpartition


def split(
    qkv: Tensor, num_heads: int, window: int, pad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """q, k, v of every window, or of the whole grid if window is 0, and the sides h, w they span.

    qkv      (B, H, W, 3 * C)
    returns  q, k, v, each (B * windows, heads, h * w, C / heads), and h, w
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
