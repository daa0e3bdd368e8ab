"""Whether an image encoder has SAM's own blocks, which other ways to run it depend on."""

from __future__ import annotations

from torch import nn

from samfast.errors import UnsupportedRecipeError
from samfast.model.image_encoder import Attention, Block, ImageEncoderViT


def check_blocks(encoder: ImageEncoderViT, what: str) -> None:
    """UnsupportedRecipeError, naming the recipe's step, for blocks with other norms or activations
    than SAM's.
    """
    for block in encoder.blocks:
        known = (
            isinstance(block, Block)
            and isinstance(block.attn, Attention)
            and isinstance(block.norm1, nn.LayerNorm)
            and isinstance(block.norm2, nn.LayerNorm)
            and isinstance(block.mlp.act, nn.GELU)
            and block.mlp.act.approximate == "none"
        )
        if not known:
            raise UnsupportedRecipeError(
                f"{what} needs SAM's own blocks: LayerNorm, Attention and GELU by erf; this "
                "encoder has others, take a recipe without it"
            )
