"""The fastest attention for a call, for models that move between devices and are trained.

The drop-in registry builds its models with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samfast.attention import blocked, folded, onednn, reference, sdpa, triton
from samfast.device.onednn_products import available, dtypes
from samfast.device.triton_support import has_triton

if TYPE_CHECKING:
    from samfast.attention import Attend


def fastest(device: torch.device, dtype: torch.dtype, in_place: bool) -> Attend:
    """The implementation to use for tokens on a device and of a dtype.

    in_place  whether buffers may be overwritten: no gradients are needed and nothing is traced
    """
    if device.type == "cpu":  # as measured: benchmarks/results/cpu_peers.json, cpu_vit_b.json
        if not in_place:
            return sdpa.attend
        by_onednn = available() and dtype in dtypes()
        return onednn.attend if by_onednn else blocked.attend
    if dtype not in (torch.bfloat16, torch.float16):  # flash attention takes only these
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
    inputs = (qkv, rel_pos_h, rel_pos_w, pad)
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing:  # its operations, unlike the others', are in every version of ONNX
        chosen: Attend = reference.attend
        return chosen(qkv, rel_pos_h, rel_pos_w, num_heads=num_heads, window=window, pad=pad)
    traced = torch.compiler.is_compiling()
    chosen = fastest(qkv.device, qkv.dtype, in_place=not (training or traced))
    return chosen(qkv, rel_pos_h, rel_pos_w, num_heads=num_heads, window=window, pad=pad)
