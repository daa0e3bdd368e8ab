"""As `segment_anything.modeling.image_encoder`.

The encoder is the plain model's with the fastest unquantized attention. Nothing here calls the
functions; they are for projects that partition windows or add relative positions themselves.
"""

from __future__ import annotations

from functools import update_wrapper
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.attention import auto, windowing
from samfast.model import image_encoder as plain
from samfast.model.image_encoder import Attention, Block, PatchEmbed
from samfast.model.layers import LayerNorm2d, MLPBlock
from samfast.types import Size

__all__ = [
    "Attention",
    "Block",
    "ImageEncoderViT",
    "LayerNorm2d",
    "MLPBlock",
    "PatchEmbed",
    "add_decomposed_rel_pos",
    "get_rel_pos",
    "window_partition",
    "window_unpartition",
]


class ImageEncoderViT(plain.ImageEncoderViT):
    """The plain encoder with `samfast.attention.auto`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = auto.attend

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the state of a pickle; attentions that the original has pickled lack theirs."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for module in self.modules():
            if isinstance(module, Attention) and "attend" not in vars(module):
                module.attend = auto.attend


update_wrapper(ImageEncoderViT.__init__, plain.ImageEncoderViT.__init__)  # for its signature


def window_partition(x: Tensor, window_size: int) -> tuple[Tensor, Size]:
    """(B, H, W, C) -> zero-padded windows (B * n, window, window, C) and the padded (H, W)."""
    padded = windowing.padded_grid(x.shape[1], x.shape[2], window_size)
    return windowing.partition(x, window_size), padded


def window_unpartition(tokens: Tensor, window_size: int, pad_hw: Size, hw: Size) -> Tensor:
    """(B * n, window, window, C) -> (B, H, W, C), (H, W) = hw; pad_hw is not needed."""
    return windowing.unpartition(tokens, window_size, *hw)


def get_rel_pos(q_size: int, k_size: int, rel_pos: Tensor) -> Tensor:
    """The rows of a table (L, d) of relative positions for each query and key: (q, k, d).

    Interpolated if L is not 2 * max(q_size, k_size) - 1; the shorter of unequal sides is stretched.
    """
    length = 2 * max(q_size, k_size) - 1
    if rel_pos.shape[0] != length:
        rel_pos = F.interpolate(rel_pos.T[None], size=length, mode="linear")[0].T
    stretch_q, stretch_k = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    queries = torch.arange(q_size)[:, None] * stretch_q
    keys = torch.arange(k_size)[None, :] * stretch_k
    return rel_pos[((queries - keys) + (k_size - 1) * stretch_k).long()]


def add_decomposed_rel_pos(
    attn: Tensor, q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, q_size: Size, k_size: Size
) -> Tensor:
    """Attention scores (B, queries, keys) with the relative positions added.

    q is (B, queries, d), unscaled; q_size and k_size are the (H, W) of the queries' and keys' grid.
    """
    grid = q.reshape(q.shape[0], *q_size, q.shape[-1])
    rel_h = torch.einsum("bhwc,hkc->bhwk", grid, get_rel_pos(q_size[0], k_size[0], rel_pos_h))
    rel_w = torch.einsum("bhwc,wkc->bhwk", grid, get_rel_pos(q_size[1], k_size[1], rel_pos_w))
    bias = rel_h[..., None] + rel_w[..., None, :]
    return attn + bias.flatten(3).flatten(1, 2)
