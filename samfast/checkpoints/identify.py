"""Which model a state dict is of, told by its shapes; and what it is when it is none of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from samfast.errors import CheckpointError
from samfast.model.config import CONFIGS, SamConfig

_PATCHES = "image_encoder.patch_embed.proj.weight"
_POSITIONS = "image_encoder.pos_embed"
_BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")

_FOREIGN = (
    # (part of a key, what has such keys); the first that fits is named.
    (
        r"\bhf_token|\bhq_token|compress_vit_feat",
        "it is of HQ-SAM, whose mask decoder has more parts",
    ),
    (
        r"image_encoder\.patch_embed\.seq|image_encoder\.layers\.",
        "it is of MobileSAM, whose encoder is a TinyViT",
    ),
    (
        r"sam_mask_decoder|image_encoder\.trunk|vision_encoder\.backbone",
        "it is of SAM 2 or later, another architecture",
    ),
    (
        r"(?i)lora_|linear_[ab]_|\.qkv\.qkv\.",
        "it holds LoRA weights; merge them into the model's own first",
    ),
    (r"(?i)adapter", "it holds adapters, which are no part of SAM"),
    (r"^model\.\d+\.", "it looks like a YOLO, such as FastSAM"),
)


def foreign(keys: Iterable[str]) -> str | None:
    """Which other model has such keys, for a message; None if it is not a known one."""
    keys = list(keys)
    return next(
        (what for pattern, what in _FOREIGN if any(re.search(pattern, key) for key in keys)), None
    )


def describe(keys: Iterable[str]) -> str:
    """What a checkpoint with these keys is or holds, for a message."""
    keys = list(keys)
    if not keys:
        return "it is empty"
    return foreign(keys) or f"it holds {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"


def identify(state: Mapping[str, Tensor], source: str) -> str:
    """The model's name in `CONFIGS`, from the encoder's width and depth.

    Raises CheckpointError, naming `source`, when there is no image encoder or its size is none of
    ours.
    """
    width, depth = _size(state, source)
    for name, config in CONFIGS.items():
        if (config.embed_dim, config.depth) == (width, depth):
            return name
    sizes = ", ".join(f"{c.name} ({c.embed_dim} wide, {c.depth} blocks)" for c in CONFIGS.values())
    raise CheckpointError(
        f"{source}: its image encoder is {width} wide and has {depth} blocks, which is none of "
        f"{sizes};"
        " give a checkpoint of one of these"
    )


def config_of(state: Mapping[str, Tensor], source: str = "state dict") -> SamConfig:
    """The configuration a state dict was trained with: its model's, at its own image size.

    Fine-tuned SAMs of another input side (256, 512, ...) have absolute positions for that side.
    """
    config = CONFIGS[identify(state, source)]
    positions = state.get(_POSITIONS)
    if positions is None or positions.ndim != 4:
        return config
    return replace(config, image_size=positions.shape[1] * config.patch_size)


def _size(state: Mapping[str, Tensor], source: str) -> tuple[int, int]:
    blocks = {int(match[1]) for match in map(_BLOCK.match, state) if match}
    patches = state.get(_PATCHES)
    if patches is None or patches.ndim != 4 or not blocks:
        raise CheckpointError(
            f"{source}: no image encoder of a SAM in it ({describe(state)}); give a checkpoint of "
            "the whole"
            f" model, one of {', '.join(CONFIGS)}"
        )
    return patches.shape[0], max(blocks) + 1
