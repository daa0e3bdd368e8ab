"""samfast: Segment Anything, the same masks, many times faster, in native PyTorch and Triton.

Public names and submodules are imported at their first use, so that `samfast --help` and the
completion of a command line need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samfast.first_use import imported_name

if TYPE_CHECKING:
    from samfast.engine import SamFast
    from samfast.loading import load
    from samfast.outputs.embeddings import load_embeddings, save_embeddings
    from samfast.recipes import RECIPES, Recipe
    from samfast.segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
    from samfast.segment_anything.build_sam import (
        build_sam,
        build_sam_vit_b,
        build_sam_vit_h,
        build_sam_vit_l,
        build_sam_vit_xs,
        sam_model_fast_registry,
        sam_model_registry,
    )
    from samfast.segment_anything.install import install_as_segment_anything
    from samfast.segment_anything.predictor import SamPredictor
    from samfast.types import (
        Answers,
        Embeddings,
        FilterCounts,
        MaskRecords,
        Masks,
        PromptBatch,
        Prompts,
        RleAnswers,
        RleMasks,
    )

__version__ = "0.2.0"

__all__ = [
    "RECIPES",
    "Answers",
    "Embeddings",
    "FilterCounts",
    "MaskRecords",
    "Masks",
    "PromptBatch",
    "Prompts",
    "Recipe",
    "RleAnswers",
    "RleMasks",
    "SamAutomaticMaskGenerator",
    "SamFast",
    "SamPredictor",
    "__version__",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "build_sam_vit_xs",
    "install_as_segment_anything",
    "load",
    "load_embeddings",
    "sam_model_fast_registry",
    "sam_model_registry",
    "save_embeddings",
]

_HOMES = {
    "RECIPES": "recipes",
    "Answers": "types",
    "Embeddings": "types",
    "FilterCounts": "types",
    "MaskRecords": "types",
    "Masks": "types",
    "PromptBatch": "types",
    "Prompts": "types",
    "Recipe": "recipes",
    "RleAnswers": "types",
    "RleMasks": "types",
    "SamAutomaticMaskGenerator": "segment_anything.automatic_mask_generator",
    "SamFast": "engine",
    "SamPredictor": "segment_anything.predictor",
    "build_sam": "segment_anything",
    "build_sam_vit_b": "segment_anything",
    "build_sam_vit_h": "segment_anything",
    "build_sam_vit_l": "segment_anything",
    "build_sam_vit_xs": "segment_anything",
    "install_as_segment_anything": "segment_anything.install",
    "load": "loading",
    "load_embeddings": "outputs.embeddings",
    "sam_model_fast_registry": "segment_anything",
    "sam_model_registry": "segment_anything",
    "save_embeddings": "outputs.embeddings",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    return imported_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
