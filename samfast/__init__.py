"""samfast: Segment Anything, the same masks, many times faster, in native PyTorch and Triton."""

from samfast.engine import SamFast
from samfast.loading import load
from samfast.outputs.embeddings import load_embeddings, save_embeddings
from samfast.recipes import RECIPES, Recipe
from samfast.segment_anything import (
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    build_sam_vit_xs,
    sam_model_fast_registry,
    sam_model_registry,
)
from samfast.segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from samfast.segment_anything.install import install_as_segment_anything
from samfast.segment_anything.predictor import SamPredictor
from samfast.types import Answers, Embeddings, Masks, PromptBatch, Prompts

__version__ = "0.2.0"

__all__ = [
    "RECIPES",
    "Answers",
    "Embeddings",
    "Masks",
    "PromptBatch",
    "Prompts",
    "Recipe",
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
