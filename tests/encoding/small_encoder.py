"""A small SAM, and what tests of the faster encoders do with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from samfast.loading import random_weights
from samfast.model.config import CONFIGS
from samfast.model.image_encoder import ImageEncoderViT
from samfast.model.sam import Sam

SMALL = replace(CONFIGS["vit_xs"], image_size=256, depth=4, global_attn_indexes=(1, 3))


def small_sam() -> Sam:
    """One whose biases are not nearly zero and whose norms are not ones."""
    sam = random_weights(SMALL)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sam.image_encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return sam


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The relative error of a."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


def leave_out(encoder: ImageEncoderViT, missing: str) -> None:
    """Take "positions", some "biases" or the "relative positions" from an encoder."""
    blocks: list[Any] = list(encoder.blocks)
    if missing == "positions":
        encoder.pos_embed = None
    elif missing == "biases":
        encoder.patch_embed.proj.bias = None
        for layer in (blocks[0].attn.qkv, blocks[1].attn.qkv, blocks[2].mlp.lin2):
            layer.bias = None
    else:
        for block in blocks:
            block.attn.rel_pos_h = block.attn.rel_pos_w = None
