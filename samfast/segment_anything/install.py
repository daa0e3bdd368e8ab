"""Make `import segment_anything` import samfast."""

from __future__ import annotations

import importlib
import sys

from samfast.errors import UsageError
from samfast.recipes import Recipe
from samfast.segment_anything.build_sam import ask_for_all

_MODULES = (
    "",
    ".automatic_mask_generator",
    ".build_sam",
    ".modeling",
    ".modeling.common",
    ".modeling.image_encoder",
    ".modeling.mask_decoder",
    ".modeling.prompt_encoder",
    ".modeling.sam",
    ".modeling.transformer",
    ".predictor",
    ".utils",
    ".utils.amg",
    ".utils.onnx",
    ".utils.transforms",
)


def install_as_segment_anything(recipe: str | Recipe | None = None) -> None:
    """Make `import segment_anything`, and every module of its 1.0, samfast in this process.

    recipe  that predictors apply to models of `sam_model_registry`: "auto", a name in
            `samfast.recipes.RECIPES` or a Recipe; None: the fastest one in float32

    Call it before anything imports segment_anything; further calls only set the recipe. Raises
    UsageError if the original has been imported already: names imported from it would stay the
    original's, and a project would run half on each. RecipeError for an unknown recipe.

        samfast.install_as_segment_anything()
        from segment_anything import SamPredictor, sam_model_registry  # samfast's
    """
    modules = {
        "segment_anything" + name: importlib.import_module("samfast.segment_anything" + name)
        for name in _MODULES
    }
    for name, module in sys.modules.items():
        if name.partition(".")[0] == "segment_anything" and module is not modules.get(name):
            place = getattr(module, "__file__", None) or "elsewhere"
            raise UsageError(
                f"{name} has been imported already, from {place}; call "
                "samfast.install_as_segment_anything() before anything imports segment_anything"
            )
    ask_for_all(recipe)
    sys.modules.update(modules)
