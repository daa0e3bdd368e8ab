"""The named recipes."""

from __future__ import annotations

from dataclasses import replace

import torch

from samfast.errors import RecipeError
from samfast.recipes.recipe import Recipe

FP32 = Recipe()
FP32_SDPA = replace(FP32, attention="sdpa")
FP32_FOLDED = replace(FP32, attention="folded")
FP32_BLOCKED = replace(FP32, attention="blocked")
BF16 = replace(FP32, dtype=torch.bfloat16)
BF16_SDPA = replace(BF16, attention="sdpa")
BF16_FOLDED = replace(BF16, attention="folded")
BF16_BLOCKED = replace(BF16, attention="blocked")
FP16_SDPA = replace(FP32_SDPA, dtype=torch.float16)

RECIPES: dict[str, Recipe] = {
    "fp32": FP32,
    "fp32_sdpa": FP32_SDPA,
    "fp32_folded": FP32_FOLDED,
    "fp32_blocked": FP32_BLOCKED,
    "bf16": BF16,
    "bf16_sdpa": BF16_SDPA,
    "bf16_folded": BF16_FOLDED,
    "bf16_blocked": BF16_BLOCKED,
    "fp16_sdpa": FP16_SDPA,
}


def get(name: str) -> Recipe:
    """The recipe of that name; RecipeError if there is none."""
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}; there are auto, {', '.join(RECIPES)}")
    return RECIPES[name]
