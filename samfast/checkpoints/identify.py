"""Which model a state dict belongs to, judged by its keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from samfast.checkpoints.file_formats import abbreviated
from samfast.errors import CheckpointError
from samfast.model.config import CONFIGS, SamConfig

_PATCHES = "image_encoder.patch_embed.proj.weight"
_POSITIONS = "image_encoder.pos_embed"
_BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")

_FOREIGN = (
    # (part of a key, what has such keys); the first match is named.
    (r"\bhf_token|\bhq_token|compress_vit_feat", "HQ-SAM, whose mask decoder has more parts"),
    (r"image_encoder\.patch_embed\.seq|image_encoder\.layers\.", "MobileSAM, with a TinyViT"),
    (
        r"sam_mask_decoder|image_encoder\.trunk|vision_encoder\.backbone",
        "SAM 2 or later, another architecture",
    ),
    (
        r"(?i)lora_|linear_[ab]_|\.qkv\.qkv\.|^w_[ab]_\d+$",
        "LoRA weights; build the SAM that they were trained on with them, merge them into its "
        "weights (W + scale B A; merge_and_unload() in peft) and save its state_dict()",
    ),
    (r"(?i)adapter", "a SAM with adapters, which are no part of SAM"),
    (r"^model\.\d+\.", "a YOLO, such as FastSAM"),
)


def foreign(keys: Iterable[str]) -> str | None:
    """Which other model has such keys, for a message; None if none is recognised."""
    keys = list(keys)
    for pattern, model in _FOREIGN:
        if any(re.search(pattern, key) for key in keys):
            return f"it looks like {model}"
    return None


def describe(keys: Iterable[str]) -> str:
    """What a checkpoint with these keys is or holds, for a message."""
    keys = list(keys)
    if not keys:
        return "it is empty"
    return foreign(keys) or f"it holds {abbreviated(keys)}"


def identify(state: Mapping[str, Tensor], source: str, expected: str | None = None) -> str:
    """The model's name in `CONFIGS`, from the encoder's width and depth.

    Raises CheckpointError, naming `source`, if there is no image encoder, if its size is unknown,
    or if the model is not the expected one.
    """
    width, depth = _size(state, source)
    size = width, depth
    name = next((n for n, c in CONFIGS.items() if (c.embed_dim, c.depth) == size), None)
    if name is None:
        sizes = (f"{c.name} ({c.embed_dim} wide, {c.depth} blocks)" for c in CONFIGS.values())
        raise CheckpointError(
            f"{source}: its image encoder is {width} wide and has {depth} blocks, which is none of "
            f"{', '.join(sizes)}; give a checkpoint of one of these"
        )
    if expected not in (None, name):
        if expected not in CONFIGS:
            raise CheckpointError(
                f"no model {expected!r}: the models are {', '.join(CONFIGS)}; {source} is {name}"
            )
        raise CheckpointError(
            f"{source}: holds {name}, not {expected}; ask for {name}, or give a checkpoint of "
            f"{expected}"
        )
    return name


def config_of(state: Mapping[str, Tensor], source: str = "state dict") -> SamConfig:
    """The configuration that a state dict was trained with: its model's, at its image size.

    A SAM fine-tuned at another input side (256, 512, ...) has absolute positions for that side.
    """
    config = CONFIGS[identify(state, source)]
    positions = state.get(_POSITIONS)
    if positions is None or positions.ndim != 4:
        return config
    return replace(config, image_size=positions.shape[1] * config.patch_size)


def _size(state: Mapping[str, Tensor], source: str) -> tuple[int, int]:
    """Width and depth of the image encoder."""
    blocks = {int(match[1]) for match in map(_BLOCK.match, state) if match}
    patches = state.get(_PATCHES)
    if patches is None or patches.ndim != 4 or not blocks:
        raise CheckpointError(
            f"{source}: no image encoder of a SAM in it ({describe(state)}); give a checkpoint of "
            f"the whole model, one of {', '.join(CONFIGS)}"
        )
    return patches.shape[0], max(blocks) + 1
