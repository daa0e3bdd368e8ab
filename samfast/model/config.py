"""The one table of SAM's variants. Everything that differs between them is here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamConfig:
    """Sizes of a SAM (Kirillov et al. 2023, section A; `build_sam.py` of the original).

    image_size and patch_size are in pixels, window_size in tokens. The prompt encoder and mask
    decoder are the same for every variant.
    """

    name: str
    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    mlp_ratio: float = 4.0
    out_chans: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    num_multimask_outputs: int = 3

    @property
    def grid(self) -> int:
        """Tokens along one side of the image."""
        return self.image_size // self.patch_size


CONFIGS: dict[str, SamConfig] = {
    config.name: config
    for config in (
        SamConfig(
            "vit_xs", embed_dim=192, depth=11, num_heads=3, global_attn_indexes=(2, 5, 8, 10)
        ),
        SamConfig(
            "vit_b", embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)
        ),
        SamConfig(
            "vit_l", embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)
        ),
        SamConfig(
            "vit_h", embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)
        ),
    )
}
