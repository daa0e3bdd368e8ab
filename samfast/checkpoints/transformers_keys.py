"""State-dict keys of transformers' `SamModel`, to and from Meta's, which this package uses.

Only names differ, so a round trip gives the same tensors. transformers has two names for the random
matrix of the positional encoding, Meta has one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from samfast.errors import CheckpointError

_GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_SHARED = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
_HYPER = "mask_decoder.output_hypernetworks_mlps.<n>"

_PARTS = (
    # (Meta's, transformers'): whole components at the start of a key; <n> stands for a number.
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.blocks.<n>.norm<n>", "vision_encoder.layers.<n>.layer_norm<n>"),
    ("image_encoder.blocks.<n>", "vision_encoder.layers.<n>"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    ("prompt_encoder.point_embeddings.<n>", "prompt_encoder.point_embed.<n>"),
    ("prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
    ("prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
    ("prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
    ("prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
    ("prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
    (
        "mask_decoder.transformer.layers.<n>.norm<n>",
        "mask_decoder.transformer.layers.<n>.layer_norm<n>",
    ),
    ("mask_decoder.transformer.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
    # These heads have three layers; transformers calls the first proj_in and the last proj_out.
    (f"{_HYPER}.layers.0", f"{_HYPER}.proj_in"),
    (f"{_HYPER}.layers.1", f"{_HYPER}.layers.0"),
    (f"{_HYPER}.layers.2", f"{_HYPER}.proj_out"),
    ("mask_decoder.iou_prediction_head.layers.0", "mask_decoder.iou_prediction_head.proj_in"),
    ("mask_decoder.iou_prediction_head.layers.1", "mask_decoder.iou_prediction_head.layers.0"),
    ("mask_decoder.iou_prediction_head.layers.2", "mask_decoder.iou_prediction_head.proj_out"),
)


def is_transformers(keys: Mapping[str, object]) -> bool:
    """Whether these are the keys of a `SamModel` of transformers."""
    return any(key.startswith("vision_encoder.") for key in keys)


def to_meta(state: Mapping[str, Tensor], source: str = "state dict") -> dict[str, Tensor]:
    """The state dict of a transformers `SamModel` with Meta's keys; the tensors are shared.

    Unknown keys are kept. Raises CheckpointError, naming `source`, if the two names of the
    positional encoding hold different values: Meta's layout has one.
    """
    out = {_rename(key, _TO_META): value for key, value in state.items() if key not in _SHARED}
    shared = [state[key] for key in _SHARED if key in state]
    if len(shared) == 2 and not torch.equal(shared[0], shared[1]):
        raise CheckpointError(
            f"{source}: {_SHARED[0]} and {_SHARED[1]} differ, but are one tensor in every SAM; "
            "re-save the model with transformers' save_pretrained"
        )
    if shared:
        out[_GAUSSIAN] = shared[0]
    return out


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta's state dict with the keys of a transformers `SamModel`, for its `load_state_dict`.

    The tensors are shared with `state`. As in `SamModel`, the positional encoding is one tensor
    under two names. safetensors refuses to store a tensor twice: leave
    `prompt_encoder.shared_embedding.positional_embedding` out, transformers ties it on load.
    """
    out = {
        _rename(key, _TO_TRANSFORMERS): value for key, value in state.items() if key != _GAUSSIAN
    }
    if _GAUSSIAN in state:
        out.update(dict.fromkeys(_SHARED, state[_GAUSSIAN]))
    return out


def _rules(source: int) -> tuple[tuple[re.Pattern[str], str], ...]:
    rules = []
    for part in _PARTS:
        pattern = re.escape(part[source]).replace("<n>", r"(\d+)")
        replacement = part[1 - source]
        for group in range(1, replacement.count("<n>") + 1):
            replacement = replacement.replace("<n>", rf"\g<{group}>", 1)
        rules.append((re.compile(pattern + r"(?=\.|$)"), replacement))
    return tuple(rules)


_TO_TRANSFORMERS, _TO_META = _rules(0), _rules(1)


def _rename(key: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        match = pattern.match(key)
        if match:
            return match.expand(replacement) + key[match.end() :]
    return key
