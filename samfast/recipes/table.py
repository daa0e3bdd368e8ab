"""The named recipes: the waterfall of "Accelerating Generative AI with PyTorch: Segment Anything,
Fast" (2023), and samfast's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from samfast.errors import RecipeError, shown
from samfast.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {"fp32": Recipe()}
"""Every named recipe, in the order in which commands list them."""


def _add(name: str, base: str, **changes: Any) -> None:
    RECIPES[name] = replace(RECIPES[base], **changes)


_add("fp32_sdpa", "fp32", attention="sdpa")
_add("fp32_folded", "fp32", attention="folded")
_add("fp32_blocked", "fp32", attention="blocked")
_add("bf16", "fp32", dtype=torch.bfloat16)
_add("bf16_sdpa", "bf16", attention="sdpa")
_add("bf16_folded", "bf16", attention="folded")
_add("bf16_blocked", "bf16", attention="blocked")
_add("bf16_triton", "bf16", attention="triton")
_add("fp16_sdpa", "fp32_sdpa", dtype=torch.float16)

_add("compile", "bf16", compile="max-autotune")
_add("sdpa", "compile", attention="sdpa")
_add("triton", "sdpa", attention="triton")
_add("nested", "triton", prompts="nested")
_add("int8", "nested", quantize="int8")
_add("2:4", "nested", sparsify="2:4")
_add("int8_2:4", "int8", sparsify="2:4")

_add("folded", "sdpa", attention="folded")
_add("compile_default", "triton", compile="default")
_add("fused", "bf16_triton", fuse=True, graph=True, prompts="packed")
_add("fp16_fused", "fused", dtype=torch.float16)
_add("fp32_fused", "fp32_blocked", fuse=True, prompts="packed")
_add("fp32_onednn", "fp32_fused", attention="onednn", products="onednn")
_add("bf16_onednn", "fp32_onednn", dtype=torch.bfloat16)
_add("int8_onednn", "bf16_onednn", quantize="int8", quantized_layers=("qkv", "lin1", "lin2"))
_add("fp32_openvino", "fp32_onednn", attention="reference", products="openvino")
_add("bf16_openvino", "fp32_openvino", dtype=torch.bfloat16)
_add("int8_openvino", "int8_onednn", attention="reference", products="openvino")
_add("fp32_int8_onednn", "fp32_onednn", quantize="int8")
_add("fp32_int8_openvino", "fp32_openvino", quantize="int8")
_add("fp8", "fused", quantize="fp8", quantized_layers=("qkv", "lin1", "lin2"))
_add("fused_int8", "fused", quantize="int8", quantized_layers=("qkv", "lin1", "lin2"))


def get(name: str) -> Recipe:
    """The recipe of that name; RecipeError for an unknown name."""
    if not isinstance(name, str) or name not in RECIPES:
        raise RecipeError(f"unknown recipe {shown(name)}; there are auto, {', '.join(RECIPES)}")
    return RECIPES[name]


def name_of(recipe: Recipe) -> str:
    """The name of a recipe, or "custom"."""
    return next((name for name, known in RECIPES.items() if known == recipe), "custom")
