"""The packaged model in the size of a larger one, for models that the package has no weights for.

Random weights say speed, but their masks are noise, or nothing, which takes other time to filter
and to write than masks of objects. A wider encoder can compute what a narrower one does: each of
its channels, heads and hidden units is a copy of one of the narrow encoder's, and what a layer
reads from copies is divided by how many there are. Copies have the mean and the variance of what
they are copies of, so that layer norms change nothing. That is exact where the narrow width divides
the wide one, as in ViT-B; in ViT-L and ViT-H some channels have one copy more, and masks differ a
little. Blocks that the narrow encoder has not, and the rest of wider heads, do next to nothing, but
with numbers as random as any: products with zeros draw less power, and run faster.
"""

from __future__ import annotations

import torch
from torch import Tensor

import samfast
from samfast.loading import random_weights
from samfast.model.config import CONFIGS, SamConfig

IDLE = 0.01
"""What random weights are multiplied by where they are to do next to nothing."""


def widened_weights(model: str) -> dict[str, Tensor]:
    """The packaged weights of vit_xs as a state dict of that model."""
    packaged = samfast.load("vit_xs", device="cpu", recipe="fp32").model.state_dict()
    return widened(packaged, CONFIGS["vit_xs"], CONFIGS[model])


def widened(state: dict[str, Tensor], narrow: SamConfig, wide: SamConfig) -> dict[str, Tensor]:
    """The state dict of a narrow SAM as that of a wide one.

    Raises ValueError if the wide one has too few blocks of a kind.
    """
    result = random_weights(wide).state_dict()
    blocks = _places_of_blocks(narrow, wide)
    idle = set(range(wide.depth)) - set(blocks)
    channels = _Copies(narrow.embed_dim, wide.embed_dim)
    for name, value in state.items():
        if not name.startswith("image_encoder."):
            result[name] = value.clone()
        elif ".blocks." not in name:
            result[name] = _ends(name, value, channels)
    for place in idle:
        for layer in ("attn.proj", "mlp.lin2"):
            for part in ("weight", "bias"):
                result[f"image_encoder.blocks.{place}.{layer}.{part}"] *= IDLE
    for number, place in enumerate(blocks):
        _widen_block(state, number, result, place, narrow, wide)
    return result


def _places_of_blocks(narrow: SamConfig, wide: SamConfig) -> list[int]:
    """For each block of the narrow encoder one of the wide one, in order, that attends alike."""
    places: list[int] = []
    for number in range(narrow.depth):
        is_global = number in narrow.global_attn_indexes
        after = range(places[-1] + 1 if places else 0, wide.depth)
        alike = (place for place in after if (place in wide.global_attn_indexes) == is_global)
        place = next(alike, None)
        if place is None:
            raise ValueError(f"{wide.name} has no block for block {number} of {narrow.name}")
        places.append(place)
    return places


class _Copies:
    """Which of `count` each of `copies` is a copy of: one after the other, again and again."""

    def __init__(self, count: int, copies: int) -> None:
        self.of = torch.arange(copies) % count
        self._share = 1 / torch.bincount(self.of)[self.of].float()

    def rows(self, value: Tensor, dim: int = 0) -> Tensor:
        """What a layer writes, copied."""
        return value.index_select(dim, self.of)

    def columns(self, weight: Tensor) -> Tensor:
        """A weight (out, in, ...) for inputs that are copies."""
        share = self._share.view(-1, *[1] * (weight.dim() - 2))
        return weight.index_select(1, self.of) * share


def _ends(name: str, value: Tensor, channels: _Copies) -> Tensor:
    """Weights of the encoder before and after its blocks."""
    if name.endswith("pos_embed"):
        return channels.rows(value, -1)
    if "patch_embed" in name:
        return channels.rows(value)
    return channels.columns(value) if name.endswith("neck.0.weight") else value.clone()


def _widen_block(
    state: dict[str, Tensor],
    number: int,
    result: dict[str, Tensor],
    place: int,
    narrow: SamConfig,
    wide: SamConfig,
) -> None:
    old, new = (f"image_encoder.blocks.{each}." for each in (number, place))
    channels = _Copies(narrow.embed_dim, wide.embed_dim)
    hidden = _Copies(*(round(each.mlp_ratio * each.embed_dim) for each in (narrow, wide)))
    heads = _Copies(narrow.num_heads, wide.num_heads)
    size, wider = (each.embed_dim // each.num_heads for each in (narrow, wide))
    for norm in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
        result[new + norm] = channels.rows(state[old + norm])
    result[new + "mlp.lin1.weight"] = channels.columns(hidden.rows(state[old + "mlp.lin1.weight"]))
    result[new + "mlp.lin1.bias"] = hidden.rows(state[old + "mlp.lin1.bias"])
    result[new + "mlp.lin2.weight"] = hidden.columns(channels.rows(state[old + "mlp.lin2.weight"]))
    result[new + "mlp.lin2.bias"] = channels.rows(state[old + "mlp.lin2.bias"])

    # Attention divides by the root of a head's size, and relative positions meet queries undivided.
    scale = (wider / size) ** 0.5
    weight, bias = result[new + "attn.qkv.weight"], result[new + "attn.qkv.bias"]
    in_heads = weight.view(3, wide.num_heads, wider, wide.embed_dim)
    in_heads *= IDLE
    copied = state[old + "attn.qkv.weight"].view(3, narrow.num_heads, size, -1)
    in_heads[:, :, :size] = channels.columns(heads.rows(copied, 1).flatten(0, 2)).view(
        3, wide.num_heads, size, -1
    )
    in_heads[0, :, :size] *= scale
    of_heads = bias.view(3, wide.num_heads, wider).zero_()
    of_heads[:, :, :size] = heads.rows(state[old + "attn.qkv.bias"].view(3, -1, size), 1)
    of_heads[0, :, :size] *= scale
    for axis in ("attn.rel_pos_h", "attn.rel_pos_w"):
        result[new + axis] *= IDLE
        result[new + axis][:, :size] = state[old + axis] / scale
    projected = state[old + "attn.proj.weight"].view(-1, narrow.num_heads, size)
    joined = result[new + "attn.proj.weight"].view(-1, wide.num_heads, wider)
    joined *= IDLE
    joined[:, :, :size] = heads.columns(channels.rows(projected))
    result[new + "attn.proj.bias"] = channels.rows(state[old + "attn.proj.bias"])
