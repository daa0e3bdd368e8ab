"""How a SAM is made fast: a recipe is data, and `apply` runs its steps in order."""

from samfast.recipes.apply import Runtime, apply, build_runtime, use_attention
from samfast.recipes.choose import Choice, choose
from samfast.recipes.device_support import refusal
from samfast.recipes.recipe import Recipe
from samfast.recipes.table import RECIPES, get

__all__ = [
    "RECIPES",
    "Choice",
    "Recipe",
    "Runtime",
    "apply",
    "build_runtime",
    "choose",
    "get",
    "refusal",
    "use_attention",
]
