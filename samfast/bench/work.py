"""The arithmetic of one image in the encoder, counted from a model's sizes."""

from __future__ import annotations

from dataclasses import dataclass

from samfast.model.config import SamConfig


@dataclass(frozen=True)
class Layer:
    """A linear layer of every encoder block: its name in Meta's module tree, its inputs and
    outputs.
    """

    name: str
    inputs: int
    outputs: int

    def flop(self, tokens: int) -> int:
        """Of one call on so many tokens: a multiplication and an addition for each weight and
        token.
        """
        return 2 * tokens * self.inputs * self.outputs


def layers(config: SamConfig) -> tuple[Layer, ...]:
    """The four linear layers of a block."""
    width, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
    return (
        Layer("qkv", width, 3 * width),
        Layer("proj", width, width),
        Layer("lin1", width, hidden),
        Layer("lin2", hidden, width),
    )


def layer_flop(config: SamConfig) -> dict[str, int]:
    """FLOP of an image in each of the four linear layers, over all blocks."""
    return {layer.name: config.depth * layer.flop(config.grid**2) for layer in layers(config)}


def attention_flop(config: SamConfig) -> int:
    """FLOP of an image in the attention of all blocks: scores, positions and values.

    Every real token asks a query; a query of a window meets all of the window's keys, of padding
    too, which take part in its softmax. What padding asks is not counted: nobody reads it.
    """
    tokens = config.grid**2
    windowed = config.depth - len(config.global_attn_indexes)
    return len(config.global_attn_indexes) * _attention(
        config, tokens, config.grid
    ) + windowed * _attention(config, tokens, config.window_size)


def _attention(config: SamConfig, tokens: int, side: int) -> int:
    scores_and_values = 2 * 2 * tokens * side**2 * config.embed_dim
    positions = (
        2 * 2 * tokens * side * config.embed_dim
    )  # q with `side` rows of each of the two tables
    return scores_and_values + positions


def encoder_flop(config: SamConfig) -> int:
    """FLOP of an image in the whole encoder: every product, none of padding; additions and norms
    are not counted.
    """
    tokens = config.grid**2
    patches = 2 * tokens * 3 * config.patch_size**2 * config.embed_dim
    neck = 2 * tokens * (config.embed_dim + 9 * config.out_chans) * config.out_chans
    return patches + sum(layer_flop(config).values()) + attention_flop(config) + neck
