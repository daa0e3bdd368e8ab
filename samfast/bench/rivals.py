"""Other implementations of the same model, with the same weights, where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from samfast.errors import MissingExtraError, UnsupportedRecipeError
from samfast.model.config import CONFIGS
from samfast.model.convert import to_transformers

Encoder = Callable[[Tensor], Tensor]


def segment_anything(model: str, state: dict[str, Tensor], device: torch.device) -> Encoder:
    """The original's image encoder in fp32."""
    package = _package("segment_anything")
    if model not in package.sam_model_registry:
        raise UnsupportedRecipeError(f"segment_anything knows no {model}")
    sam = package.sam_model_registry[model]()
    sam.load_state_dict(state)
    encoder: Encoder = sam.image_encoder.to(device).eval()
    return encoder


def transformers(
    model: str, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype = torch.float32
) -> Encoder:
    """transformers' SamModel's vision encoder, with SDPA, which is its own choice."""
    package = _package("transformers")
    config = CONFIGS[model]
    vision = package.SamVisionConfig(
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        global_attn_indexes=list(config.global_attn_indexes),
        mlp_ratio=config.mlp_ratio,
        image_size=config.image_size,
        window_size=config.window_size,
    )
    sam = package.SamModel(package.SamConfig(vision_config=vision, attn_implementation="sdpa"))
    sam.load_state_dict(to_transformers(state), strict=False)  # its two names of one tensor differ by version
    encoder = sam.vision_encoder.to(device, dtype).eval()

    def encode(pixels: Tensor) -> Tensor:
        features: Tensor = encoder(pixels).last_hidden_state
        return features

    return encode


RIVALS: dict[str, Callable[[str, dict[str, Tensor], torch.device], Encoder]] = {
    "rival:segment-anything": segment_anything,
    "rival:transformers": transformers,
}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{name} cannot be imported ({error}); install it to measure it") from error
