"""As `segment_anything.build_sam`, plus `vit_xs` and the registry of segment-anything-fast."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from samfast.checkpoints import resolve
from samfast.checkpoints.state_dict import load_into, read_state
from samfast.model.config import CONFIGS, SamConfig
from samfast.model.sam import build
from samfast.recipes import Recipe, get
from samfast.segment_anything import modeling, recipe_runner
from samfast.segment_anything.modeling import *  # noqa: F403 (the original imports these names)
from samfast.segment_anything.modeling import ImageEncoderViT, Sam

__all__ = [
    "build_sam",
    "build_sam_fast",
    "build_sam_fast_vit_b",
    "build_sam_fast_vit_h",
    "build_sam_fast_vit_l",
    "build_sam_fast_vit_xs",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "build_sam_vit_xs",
    "sam_model_fast_registry",
    "sam_model_registry",
]
__all__ += modeling.__all__

Checkpoint = str | os.PathLike[str] | None

COMPILE_MODE = "max-autotune"
"""The default of segment-anything-fast's builders."""

_asked: str | Recipe | None = None
"""The recipe for every model of the registry; None: the fastest one in float32."""


def ask_for_all(recipe: str | Recipe | None) -> None:
    """Have models that are built from now on run by the recipe, as `recipe_runner.ask_for` does.

    None: by the fastest one in float32. Raises RecipeError for an unknown name.
    """
    global _asked
    _asked = get(recipe) if isinstance(recipe, str) and recipe != "auto" else recipe


def build_sam_vit_h(checkpoint: Checkpoint = None) -> Sam:
    """A ViT-H SAM with a checkpoint's weights, or random ones without."""
    return _build(CONFIGS["vit_h"], checkpoint)


build_sam = build_sam_vit_h


def build_sam_vit_l(checkpoint: Checkpoint = None) -> Sam:
    """A ViT-L SAM with a checkpoint's weights, or random ones without."""
    return _build(CONFIGS["vit_l"], checkpoint)


def build_sam_vit_b(checkpoint: Checkpoint = None) -> Sam:
    """A ViT-B SAM with a checkpoint's weights, or random ones without."""
    return _build(CONFIGS["vit_b"], checkpoint)


def build_sam_vit_xs(checkpoint: Checkpoint = None) -> Sam:
    """samfast's small SAM with a checkpoint's weights, or the packaged weights without."""
    return _build(CONFIGS["vit_xs"], resolve("vit_xs", None) if checkpoint is None else checkpoint)


sam_model_registry: dict[str, Callable[..., Sam]] = {
    "default": build_sam,
    "vit_h": build_sam,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
    "vit_xs": build_sam_vit_xs,
}


def _build(config: SamConfig, checkpoint: Checkpoint) -> Sam:
    sam = build(config, encoder=ImageEncoderViT)
    if checkpoint is not None:
        load_into(sam, read_state(checkpoint), source=str(checkpoint))
    if _asked is not None:
        recipe_runner.ask_for(sam, _asked)
    return sam


def _build_sam(
    encoder_embed_dim: int,
    encoder_depth: int,
    encoder_num_heads: int,
    encoder_global_attn_indexes: Sequence[int],
    checkpoint: Checkpoint = None,
) -> Sam:
    """A SAM with another encoder's sizes (original: `_build_sam`, which some projects call)."""
    indexes = tuple(encoder_global_attn_indexes)
    config = SamConfig("custom", encoder_embed_dim, encoder_depth, encoder_num_heads, indexes)
    return _build(config, checkpoint)


def _fast(builder: Callable[..., Sam]) -> Callable[..., Sam]:
    """The builder of the same model in segment-anything-fast."""

    def build_fast(
        checkpoint: Checkpoint = None,
        compile_mode: str | None = COMPILE_MODE,
        dtype: torch.dtype = torch.bfloat16,
    ) -> Sam:
        """The same model, asked to run as the recipe "auto" does where a predictor runs it.

        With another compile_mode or dtype, as the recipe "sdpa" with those: what
        segment-anything-fast does. None compiles nothing.

        The recipe is applied when `SamPredictor` or `SamAutomaticMaskGenerator` first runs the
        model, on the device where it is then. From then on its weights are in the recipe's dtype.
        """
        sam = builder(checkpoint)
        if (compile_mode, dtype) == (COMPILE_MODE, torch.bfloat16):
            recipe_runner.ask_for(sam, "auto")
        else:
            recipe = replace(get("sdpa"), compile=compile_mode, dtype=dtype)
            recipe_runner.ask_for(sam, recipe)
        return sam

    name = builder.__name__.replace("build_sam", "build_sam_fast")
    build_fast.__name__ = build_fast.__qualname__ = name
    return build_fast


build_sam_fast_vit_h = _fast(build_sam_vit_h)
build_sam_fast = build_sam_fast_vit_h
build_sam_fast_vit_l = _fast(build_sam_vit_l)
build_sam_fast_vit_b = _fast(build_sam_vit_b)
build_sam_fast_vit_xs = _fast(build_sam_vit_xs)

sam_model_fast_registry: dict[str, Callable[..., Sam]] = {
    "default": build_sam_fast,
    "vit_h": build_sam_fast,
    "vit_l": build_sam_fast_vit_l,
    "vit_b": build_sam_fast_vit_b,
    "vit_xs": build_sam_fast_vit_xs,
}
