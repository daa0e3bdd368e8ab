"""Fused kernels, most of Triton: no bias, window or padding is ever written out."""

from __future__ import annotations

from torch import Tensor

from samfast.attention import active_configs
from samfast.attention.kernels import hopper_windows
from samfast.attention.kernels.tunables import Config
from samfast.attention.relpos import resize_table
from samfast.device.custom_ops import operation
from samfast.device.triton_support import interpreted, need_triton
from samfast.errors import UnsupportedRecipeError


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
    return attend_fused(qkv, table_h, table_w, pad, num_heads, window)


@operation(fake=lambda qkv, *rest: qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3))
def attend_fused(
    qkv: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    pad: Tensor | None,
    num_heads: int,
    window: int,
) -> Tensor:
    """As `attend`, with tables of the right length and dtype."""
    need_triton("attention='triton'")
    if qkv.device.type != "cuda" and not interpreted():
        raise UnsupportedRecipeError(
            f"attention='triton' needs an NVIDIA GPU; these tokens are on {qkv.device}"
        )
    if window and hopper_windows.takes(qkv, num_heads, window):
        return hopper_windows.launch(qkv.contiguous(), table_h, table_w, pad, num_heads)
    dim = qkv.shape[-1] // (3 * num_heads)
    config = active_configs.config(bool(window), qkv.dtype, dim, qkv.device)
    return launch(qkv.contiguous(), table_h, table_w, pad, num_heads, window, config)


def launch(
    qkv: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    pad: Tensor | None,
    num_heads: int,
    window: int,
    config: Config,
) -> Tensor:
    """As `attend_fused`, with a configuration; qkv is contiguous."""
    from samfast.attention.kernels import global_attention, window_attention

    if window:
        return window_attention.launch(qkv, table_h, table_w, pad, num_heads, window, config)
    return global_attention.launch(qkv, table_h, table_w, num_heads, config)
