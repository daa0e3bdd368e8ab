"""What a device can and cannot run, said before anything is tried."""

from __future__ import annotations

import torch

from samfast.recipes.recipe import Recipe


def refusal(recipe: Recipe, device: torch.device) -> str | None:
    """Why this recipe does not run on that device and what it needs; None if it does run."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "needs an NVIDIA GPU that this PyTorch sees (torch.cuda.is_available() is false)"
        if recipe.dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "needs a GPU with bfloat16 (compute capability 8.0); take an fp16 or fp32 recipe"
    elif recipe.dtype == torch.float16:
        return "fp16 needs a GPU: on a CPU it runs ten times slower than fp32; take a bf16 or fp32 recipe"
    return None


def native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX512-BF16 or AMX), and does not emulate it."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
