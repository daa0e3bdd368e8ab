"""The fastest exact attention for the tokens at hand, chosen call by call.

For models that move between devices and are trained as well: what the drop-in registry builds.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samfast.attention import blocked, folded, sdpa, triton

if TYPE_CHECKING:
    from samfast.attention import Attend


def fastest(device_type: str, dtype: torch.dtype, in_place: bool) -> Attend:
    """The implementation to use.

    device_type  "cpu", "cuda", ...
    dtype        of the tokens
    in_place     whether buffers may be written over: not if gradients are wanted or the operations recorded
    """
    if device_type == "cpu":  # as measured: benchmarks/results/cpu_vit_b.json
        return blocked.attend if in_place else sdpa.attend
    if dtype not in (torch.bfloat16, torch.float16):  # flash attention, which folding is for, has no other
        return sdpa.attend
    return triton.attend if device_type == "cuda" and in_place and _runs_triton() else folded.attend


@functools.cache
def _runs_triton() -> bool:
    """Whether triton is installed and this process's GPUs have what its kernels need."""
    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        return False
    count = torch.cuda.device_count()
    return all(torch.cuda.get_device_capability(index) >= (8, 0) for index in range(count))


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
    chosen = fastest(qkv.device.type, qkv.dtype, in_place)
    return chosen(qkv, rel_pos_h, rel_pos_w, num_heads=num_heads, window=window, pad=pad)
