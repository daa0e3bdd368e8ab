"""A SAM small enough for tests, and transformers' `SamModel` of the same sizes."""

from __future__ import annotations

from typing import Any

import torch

from samfast.engine import SamFast
from samfast.model.config import SamConfig
from samfast.model.sam import Sam, build
from samfast.provenance import Provenance
from samfast.recipes import Recipe, apply

TINY = SamConfig(
    "tiny",
    embed_dim=32,
    depth=2,
    num_heads=2,
    global_attn_indexes=(1,),
    image_size=128,
    window_size=3,
    out_chans=32,
    decoder_heads=4,
    decoder_mlp_dim=64,
)


def random_sam(config: SamConfig = TINY, seed: int = 0) -> Sam:
    """Random weights, positions included, which are zero in a new model; the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for the new model's initial weights
        sam = build(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in sam.state_dict().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return sam


def applied(sam: Sam, recipe: Recipe, device: str = "cpu") -> Sam:
    """The model after a recipe was applied to it."""
    apply(sam, recipe, torch.device(device))
    return sam


def fast(
    sam: Sam,
    recipe: Recipe,
    *,
    batch_size: int = 1,
    device: str = "cpu",
    name: str = "tiny",
    **options: Any,
) -> SamFast:
    """A SamFast of the model under a recipe."""
    runtime = apply(sam, recipe, torch.device(device), batch_size=batch_size, name=name)
    return SamFast(sam, runtime, Provenance(name, **options))


def transformers_sam(config: SamConfig = TINY) -> Any:
    """A `SamModel` of transformers with the same sizes and random weights, in evaluation mode."""
    import transformers

    hf = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            hidden_size=config.embed_dim,
            output_channels=config.out_chans,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            window_size=config.window_size,
            global_attn_indexes=list(config.global_attn_indexes),
            num_pos_feats=config.out_chans // 2,
            mlp_ratio=config.mlp_ratio,
        ),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(
            hidden_size=config.out_chans,
            image_size=config.image_size,
            patch_size=config.patch_size,
            mask_input_channels=config.mask_in_chans,
        ),
        mask_decoder_config=transformers.SamMaskDecoderConfig(
            hidden_size=config.out_chans,
            mlp_dim=config.decoder_mlp_dim,
            num_hidden_layers=config.decoder_depth,
            num_attention_heads=config.decoder_heads,
            # transformers' default is 1e-6; the original's is 1e-5.
            layer_norm_eps=1e-5,
        ),
    )
    return transformers.SamModel(hf).eval()
