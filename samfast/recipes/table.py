"""The named recipes: the waterfall of "Accelerating Generative AI with PyTorch: Segment Anything,
Fast" (2023), and samfast's.
"""

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
BF16_TRITON = replace(BF16, attention="triton")
FP16_SDPA = replace(FP32_SDPA, dtype=torch.float16)

COMPILE = replace(BF16, compile="max-autotune")
SDPA = replace(COMPILE, attention="sdpa")
TRITON = replace(SDPA, attention="triton")
NESTED = replace(TRITON, prompts="nested")
INT8 = replace(NESTED, quantize="int8")
SPARSE = replace(NESTED, sparsify="2:4")
INT8_SPARSE = replace(INT8, sparsify="2:4")

FOLDED = replace(SDPA, attention="folded")
COMPILE_DEFAULT = replace(TRITON, compile="default")
FUSED = replace(BF16_TRITON, fuse=True, graph=True, prompts="packed")
FP16_FUSED = replace(FUSED, dtype=torch.float16)
FP32_FUSED = replace(FP32_BLOCKED, fuse=True, prompts="packed")
FP8 = replace(FUSED, quantize="fp8", quantized_layers=("qkv", "lin1", "lin2"))
FUSED_INT8 = replace(FUSED, quantize="int8", quantized_layers=("qkv", "lin1", "lin2"))

RECIPES: dict[str, Recipe] = {
    "fp32": FP32,
    "fp32_sdpa": FP32_SDPA,
    "fp32_folded": FP32_FOLDED,
    "fp32_blocked": FP32_BLOCKED,
    "bf16": BF16,
    "bf16_sdpa": BF16_SDPA,
    "bf16_folded": BF16_FOLDED,
    "bf16_blocked": BF16_BLOCKED,
    "bf16_triton": BF16_TRITON,
    "fp16_sdpa": FP16_SDPA,
    "compile": COMPILE,
    "sdpa": SDPA,
    "triton": TRITON,
    "nested": NESTED,
    "int8": INT8,
    "2:4": SPARSE,
    "int8_2:4": INT8_SPARSE,
    "folded": FOLDED,
    "compile_default": COMPILE_DEFAULT,
    "fused": FUSED,
    "fp16_fused": FP16_FUSED,
    "fp32_fused": FP32_FUSED,
    "fp8": FP8,
    "fused_int8": FUSED_INT8,
}


def get(name: str) -> Recipe:
    """The recipe of that name; RecipeError for an unknown name."""
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}; there are auto, {', '.join(RECIPES)}")
    return RECIPES[name]


def name_of(recipe: Recipe) -> str:
    """The name of a recipe, or "custom"."""
    return next((name for name, known in RECIPES.items() if known == recipe), "custom")
