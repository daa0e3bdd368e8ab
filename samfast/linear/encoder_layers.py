"""Where the linear layers of the encoder's blocks are, by the names that recipes use."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from samfast.model.sam import Sam
from samfast.recipes.recipe import LAYERS

PARENTS = {"qkv": "attn", "proj": "attn", "lin1": "mlp", "lin2": "mlp"}


@dataclass(frozen=True)
class Place:
    """One linear layer of one block, and what may take its place.

    name   as in the model's state dict: "image_encoder.blocks.3.attn.qkv"
    layer  of `samfast.recipes.recipe.LAYERS`
    """

    name: str
    layer: str
    parent: nn.Module

    @property
    def module(self) -> nn.Module:
        """What is there now."""
        found: nn.Module = getattr(self.parent, self.layer)
        return found

    def put(self, module: nn.Module) -> None:
        """Replace it."""
        setattr(self.parent, self.layer, module)


def places(sam: Sam, layers: Collection[str] = LAYERS) -> list[Place]:
    """Those layers of every block, from the first block to the last."""
    found = []
    for index, block in enumerate(sam.image_encoder.blocks):
        for layer in LAYERS:
            if layer in layers:
                parent: nn.Module = getattr(block, PARENTS[layer])
                name = f"image_encoder.blocks.{index}.{PARENTS[layer]}.{layer}"
                found.append(Place(name, layer, parent))
    return found
