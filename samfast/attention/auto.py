"""The fastest exact attention for the tokens at hand, chosen call by call.

For models that move between devices and are trained as well: what the drop-in registry builds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samfast.attention import blocked, folded, sdpa, triton
from samfast.device.triton_support import has_triton

if TYPE_CHECKING:
    from samfast.attention import Attend


def fastest(device: torch.device, dtype: torch.dtype, in_place: bool) -> Attend:
    """The implementation to use.

    device    where the tokens are
    dtype     of the tokens
    in_place  whether buffers may be written over: not if gradients are wanted or the operations
              recorded
    """
    if device.type == "cpu":  # as measured: benchmarks/results/cpu_vit_b.json
        return blocked.attend if in_place else sdpa.attend
    if dtype not in (
        torch.bfloat16,
        torch.float16,
    ):  # flash attention, which folding is for, has no other
        return sdpa.attend
    return triton.attend if in_place and has_triton(device) else folded.attend


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
    given = (qkv, rel_pos_h, rel_pos_w, pad)
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    in_place = not (training or recorded)
    chosen = fastest(qkv.device, qkv.dtype, in_place)
    return chosen(qkv, rel_pos_h, rel_pos_w, num_heads=num_heads, window=window, pad=pad)
