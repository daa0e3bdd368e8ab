"""How a SAM is made fast: a recipe is data, each of its fields a step in a file of its own."""

from samfast.recipes.apply import apply, use_attention
from samfast.recipes.choose import Choice, choose
from samfast.recipes.device_support import refusal
from samfast.recipes.recipe import Recipe
from samfast.recipes.table import RECIPES, get

__all__ = ["RECIPES", "Choice", "Recipe", "apply", "choose", "get", "refusal", "use_attention"]
