"""A recipe applied to a model: each field to its step."""

from __future__ import annotations

import torch

from samfast import attention
from samfast.errors import UnsupportedRecipeError
from samfast.model.image_encoder import Attention
from samfast.model.sam import Sam
from samfast.recipes import precision
from samfast.recipes.device_support import refusal
from samfast.recipes.recipe import Recipe


def apply(sam: Sam, recipe: Recipe, device: torch.device) -> Sam:
    """Move the model to the device and make it what the recipe says, in place; returns it.

    Raises UnsupportedRecipeError when the device cannot run it.
    """
    reason = refusal(recipe, device)
    if reason is not None:
        raise UnsupportedRecipeError(f"recipe ({recipe}) on {device}: {reason}")
    precision.convert(sam, recipe.dtype)
    sam.to(device)
    use_attention(sam, recipe.attention)
    if recipe.sparsify is not None:
        from samfast.recipes import sparsify

        sparsify.apply(sam, recipe)
    if recipe.quantize is not None:
        from samfast.recipes import quantize

        quantize.apply(sam, recipe)
    return sam


def use_attention(sam: Sam, name: str) -> None:
    """Give every block of the image encoder the attention of that name; RecipeError if there is
    none.
    """
    attend = attention.get(name)
    for module in sam.image_encoder.modules():
        if isinstance(module, Attention):
            module.attend = attend
