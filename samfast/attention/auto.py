"""The fastest exact attention for the device that the tokens are on, chosen call by call.

For models that move between devices and are trained as well: what the drop-in registry builds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from samfast.attention import sdpa

if TYPE_CHECKING:
    from samfast.attention import Attend


def fastest(device_type: str) -> Attend:
    """The implementation to use on devices of that type ("cpu", "cuda", ...); all have gradients."""
    return sdpa.attend


def attend(
    qkv: Tensor,
    rel_pos_h: Tensor | None,
    rel_pos_w: Tensor | None,
    *,
    num_heads: int,
    window: int,
    pad: Tensor | None,
) -> Tensor:
    """As `samfast.attention.reference.attend`."""
    chosen = fastest(qkv.device.type)
    return chosen(qkv, rel_pos_h, rel_pos_w, num_heads=num_heads, window=window, pad=pad)
