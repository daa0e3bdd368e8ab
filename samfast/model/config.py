"""The sizes in which SAM's variants differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamConfig:
    """Sizes of a SAM (Kirillov et al. 2023, section A; original: `build_sam.py`).

    image_size and patch_size are in pixels, window_size in tokens. The prompt encoder and the mask
    decoder of every public variant have the same sizes.
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
        # name, embed_dim, depth, num_heads, global_attn_indexes
        SamConfig("vit_xs", 192, 11, 3, (2, 5, 8, 10)),
        SamConfig("vit_b", 768, 12, 12, (2, 5, 8, 11)),
        SamConfig("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
        SamConfig("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
    )
}
