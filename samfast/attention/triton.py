"""Fused Triton kernels: no bias, no windows and no padding are ever written out."""

from __future__ import annotations

from torch import Tensor

from samfast.attention.custom_op import operation
from samfast.attention.relpos import resize_table


def attend(
    qkv: Tensor,
    rel_pos_h: Tensor | None,
    rel_pos_w: Tensor | None,
    *,
    num_heads: int,
    window: int,
    pad: Tensor | None,
) -> Tensor:
    """As `samfast.attention.reference.attend`, without gradients.

    Raises UnsupportedRecipeError for tokens that are not on an NVIDIA GPU, MissingExtraError
    without triton.
    """
    table_h = table_w = None
    if rel_pos_h is not None and rel_pos_w is not None:
        _, height, width, _ = qkv.shape
        table_h = resize_table(rel_pos_h.to(qkv.dtype), window or height).contiguous()
        table_w = resize_table(rel_pos_w.to(qkv.dtype), window or width).contiguous()
    return operation()(qkv, table_h, table_w, pad, num_heads, window)
