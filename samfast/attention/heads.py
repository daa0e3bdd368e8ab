"""From projected tokens to heads, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from samfast.attention.relpos import terms
from samfast.attention.windowing import partition, unpartition

if TYPE_CHECKING:
    from samfast.attention import Attend


def over_heads(
    attend_heads: Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor],
) -> Attend:
    """An implementation of attention, as `samfast.attention.reference.attend`, on split heads.

    attend_heads  q, k, v of `split`, rel_h and rel_w of `samfast.attention.relpos.terms`, or None
                  without positions -> (B', heads, tokens, d)
    """

    def attend(
        qkv: Tensor,
        rel_pos_h: Tensor | None,
        rel_pos_w: Tensor | None,
        *,
        num_heads: int,
        window: int,
        pad: Tensor | None,
    ) -> Tensor:
        q, k, v, height, width = split(qkv, num_heads, window, pad)
        rel_h = rel_w = None
        if rel_pos_h is not None and rel_pos_w is not None:
            rel_h, rel_w = terms(q, rel_pos_h, rel_pos_w, height, width)
        return merge(attend_heads(q, k, v, rel_h, rel_w), window, qkv.shape[1], qkv.shape[2])

    return attend


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
