"""The fused kernels as one operation of PyTorch, `samfast::attend`, so that torch.compile sees a
node and no code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from samfast.attention import active_configs
from samfast.device.triton_support import interpreted, need_triton
from samfast.errors import UnsupportedRecipeError

Operation = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None, int, int], Tensor]


_made: Operation | None = None


def operation() -> Operation:
    """The operation; registered with PyTorch, and triton imported, when first asked for.

    Raises MissingExtraError without triton.
    """
    global _made  # not functools.cache, through which torch.compile would trace
    if _made is None:
        _made = _register()
    return _made


def _register() -> Operation:
    need_triton("attention='triton'")
    from samfast.attention.kernels import global_attention, window_attention

    @torch.library.custom_op("samfast::attend", mutates_args=())
    def attend(
        qkv: Tensor,
        table_h: Tensor | None,
        table_w: Tensor | None,
        pad: Tensor | None,
        num_heads: int,
        window: int,
    ) -> Tensor:
        if qkv.device.type != "cuda" and not interpreted():
            raise UnsupportedRecipeError(
                f"attention='triton' needs an NVIDIA GPU; these tokens are on {qkv.device}"
            )
        dim = qkv.shape[-1] // (3 * num_heads)
        qkv = qkv.contiguous()
        config = active_configs.config(bool(window), qkv.dtype, dim, qkv.device)
        if window:
            return window_attention.launch(qkv, table_h, table_w, pad, num_heads, window, config)
        return global_attention.launch(qkv, table_h, table_w, num_heads, config)

    @attend.register_fake
    def _shape(
        qkv: Tensor,
        table_h: Tensor | None,
        table_w: Tensor | None,
        pad: Tensor | None,
        num_heads: int,
        window: int,
    ) -> Tensor:
        batch, height, width, channels = qkv.shape
        return qkv.new_empty(batch, height, width, channels // 3)

    found: Operation = attend
    return found
