"""Runtime: a model's encoder and decoder as a recipe runs them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samfast.decoding.decoder import Decoder
from samfast.encoding.encoder import Encoder
from samfast.recipes.recipe import Recipe


@dataclass(frozen=True)
class Runtime:
    """The result of `samfast.recipes.apply`.

    encode      normalised pixels (B, 3, S, S) float32 on the device -> embeddings
                (B, 256, S / 16, S / 16)
    decode      embeddings and prompts -> low-resolution logits and predicted IoU
    recipe      that was applied
    device      of the model
    batch_size  images encoded at a time
    """

    encode: Encoder
    decode: Decoder
    recipe: Recipe
    device: torch.device
    batch_size: int
