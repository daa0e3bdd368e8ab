"""Prune the encoder layer by layer on photos, each layer for its inputs in the pruned model.

Two streams of activations go through the blocks in step: those of the dense model and those of the
model pruned so far. A layer is pruned for its inputs in the second stream, to give its outputs in
the first. Where the output is added to the residual stream, the target also includes the difference
between the two streams. So later layers compensate for the errors of earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samfast.linear.encoder_layers import encoder_layers
from samfast.linear.prune import Moments, prune
from samfast.model.sam import Sam

Pair = tuple[Tensor, Tensor]
"""One photo's activations in the dense and in the pruned model, kept on the CPU."""

Method = Callable[[nn.Linear, Moments, bool], None]
"""Prunes a layer in place: the layer, its moments, and whether its bias must stay."""


@torch.no_grad()
def prune_layerwise(
    sam: Sam,
    images: Sequence[Tensor],
    layers: Collection[str],
    *,
    method: Method | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, float]:
    """Prune those linear layers of every block, in place, from the first block to the last.

    sam       in float32, on any device
    images    normalised pixels (1, 3, S, S) of each photo, on any device
    layers    some of `samfast.linear.encoder_layers.LAYERS`
    method    prunes a layer; None: prune_with_sparsegpt
    progress  called with 1 after each block
    returns   for each pruned layer, "image_encoder.blocks.0.attn.qkv" and so on, the relative error
              of its outputs on these photos

    The photos' activations are kept on the CPU: 34 MB per photo at most for ViT-B, 168 MB for
    ViT-H. Raises UnsupportedRecipeError for a layer that is not an nn.Linear.
    """
    for layer in encoder_layers(sam, layers):
        layer.linear("sparsify", "made 2:4 sparse")
    encoder = sam.image_encoder
    starts = [_embed(encoder, pixels.to(sam.device)).cpu() for pixels in images]
    pairs = [(x, x) for x in starts]
    errors: dict[str, float] = {}
    for index, block in enumerate(encoder.blocks):
        steps = _Steps(block, set(layers), method or prune_with_sparsegpt, sam.device)
        pairs = steps.run(pairs)
        errors |= {
            f"image_encoder.blocks.{index}.{name}": error for name, error in steps.errors.items()
        }
        if progress is not None:
            progress(1)
    return errors


def prune_with_sparsegpt(layer: nn.Linear, moments: Moments, keep_bias: bool) -> None:
    """The default method (`samfast.linear.prune.prune`)."""
    weight, bias = prune(layer.weight, layer.bias, moments, keep_bias=keep_bias)
    layer.weight.copy_(weight)
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)


class _Steps:
    """Prunes one block, layer by layer."""

    def __init__(self, block: Any, layers: set[str], method: Method, device: torch.device) -> None:
        self.block, self.layers, self.method, self.device = block, layers, method, device
        self.errors: dict[str, float] = {}

    def run(self, pairs: list[Pair]) -> list[Pair]:
        """The block's inputs -> its outputs, in both streams."""
        block, attn, mlp = self.block, self.block.attn, self.block.mlp
        rows = self._each(block.norm1, pairs)
        # Padding tokens of windows are the bias of qkv, so it must stay.
        rows = self._linear("attn.qkv", attn.qkv, rows, keep_bias=True)
        rows = self._each(self._attend, rows)
        pairs = self._linear("attn.proj", attn.proj, rows, onto=pairs)
        rows = self._each(block.norm2, pairs)
        rows = self._linear("mlp.lin1", mlp.lin1, rows)
        rows = self._each(mlp.act, rows)
        return self._linear("mlp.lin2", mlp.lin2, rows, onto=pairs)

    def _attend(self, qkv: Tensor) -> Tensor:
        attn, window = self.block.attn, self.block.window_size
        out: Tensor = attn.attend(
            qkv,
            attn.rel_pos_h,
            attn.rel_pos_w,
            num_heads=attn.num_heads,
            window=window,
            pad=attn.qkv.bias if window else None,
        )
        return out

    def _each(self, function: Callable[[Tensor], Tensor], pairs: list[Pair]) -> list[Pair]:
        return [
            (function(dense.to(self.device)).cpu(), function(pruned.to(self.device)).cpu())
            for dense, pruned in pairs
        ]

    def _linear(
        self,
        name: str,
        layer: nn.Linear,
        pairs: list[Pair],
        *,
        onto: list[Pair] | None = None,
        keep_bias: bool = False,
    ) -> list[Pair]:
        """The layer's outputs in both streams, plus the residual stream in `onto`; the layer is
        pruned between the dense and the pruned stream.
        """
        chosen = name.rpartition(".")[2] in self.layers
        moments = Moments(layer.in_features, layer.out_features, self.device)
        outputs = []
        for i, (dense, pruned) in enumerate(pairs):
            output = layer(dense.to(self.device))
            if onto is not None:
                output = output + onto[i][0].to(self.device)
            if chosen:
                target = output if onto is None else output - onto[i][1].to(self.device)
                moments.add(pruned.to(self.device).flatten(0, -2), target.flatten(0, -2))
            outputs.append(output.cpu())
        if chosen:
            self.method(layer, moments, keep_bias)
            self.errors[name] = moments.relative_error(layer.weight, layer.bias)
        both = []
        for i, (_, pruned) in enumerate(pairs):
            output = layer(pruned.to(self.device))
            if onto is not None:
                output = output + onto[i][1].to(self.device)
            both.append((outputs[i], output.cpu()))
        return both


def _embed(encoder: Any, pixels: Tensor) -> Tensor:
    x: Tensor = encoder.patch_embed(pixels)
    return x if encoder.pos_embed is None else x + encoder.pos_embed
