"""Walking through the encoder with photos, so that each layer is pruned for what reaches it and
what it is to say.

Two streams go through the blocks in step: that of the model as it was, and that of the model as it
becomes. A layer is pruned for the second stream and should answer what it answered in the first;
where its answer is added to the residual stream, also what that lacks by then. So errors are made
up for and do not pile up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samfast.linear.prune import Moments, prune
from samfast.model.sam import Sam

Pair = tuple[Tensor, Tensor]
"""One photo's activations in the model as it was, and in the model as it becomes; kept on the
CPU."""

Method = Callable[[nn.Linear, Moments, bool], None]
"""Prunes a layer in place: the layer, its moments, and whether its bias must stay."""


@torch.no_grad()
def walk(
    sam: Sam,
    images: Sequence[Tensor],
    layers: Collection[str],
    *,
    method: Method | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, float]:
    """Prune those linear layers of every block, in place, from the first to the last.

    sam       in float32
    images    normalised pixels (1, 3, S, S) of each photo, on any device
    layers    names in `samfast.recipes.recipe.LAYERS`
    method    how a layer is pruned; None: `samfast.linear.prune.prune`
    progress  called with 1 for each block that is done
    returns   for each pruned layer, "image_encoder.blocks.0.attn.qkv" and so on, the relative error
              of its answers

    The photos' activations wait on the CPU: 34 MB a photo at most for ViT-B, 168 MB for ViT-H.
    """
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
    """samfast's own method (`samfast.linear.prune.prune`)."""
    weight, bias = prune(layer.weight, layer.bias, moments, keep_bias=keep_bias)
    layer.weight.copy_(weight)
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)


class _Steps:
    """One block, layer by layer."""

    def __init__(self, block: Any, layers: set[str], method: Method, device: torch.device) -> None:
        self.block, self.layers, self.method, self.device = block, layers, method, device
        self.errors: dict[str, float] = {}

    def run(self, pairs: list[Pair]) -> list[Pair]:
        """The block's inputs -> its outputs."""
        block, attn, mlp = self.block, self.block.attn, self.block.mlp
        rows = self._each(block.norm1, pairs)
        # The padding of windows is answered with the bias of qkv itself, so that one stays.
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
        def there_and_back(x: Tensor) -> Tensor:
            return function(x.to(self.device)).cpu()

        return [(there_and_back(was), there_and_back(now)) for was, now in pairs]

    def _linear(
        self,
        name: str,
        layer: nn.Linear,
        pairs: list[Pair],
        *,
        onto: list[Pair] | None = None,
        keep_bias: bool = False,
    ) -> list[Pair]:
        """The layer's answers in both streams, with what they are added to, and the layer pruned in
        between.
        """
        chosen = name.rpartition(".")[2] in self.layers
        moments = Moments.empty(layer.in_features, layer.out_features, self.device)
        answers = []
        for i, (was, now) in enumerate(pairs):
            answer = layer(was.to(self.device))
            if onto is not None:
                answer = answer + onto[i][0].to(self.device)
            if chosen:
                wanted = answer if onto is None else answer - onto[i][1].to(self.device)
                moments.add(now.to(self.device).flatten(0, -2), wanted.flatten(0, -2))
            answers.append(answer.cpu())
        if chosen:
            self.method(layer, moments, keep_bias)
            self.errors[name] = moments.relative_error(layer.weight, layer.bias)
        out = []
        for i, (_, now) in enumerate(pairs):
            answer = layer(now.to(self.device))
            if onto is not None:
                answer = answer + onto[i][1].to(self.device)
            out.append((answers[i], answer.cpu()))
        return out


def _embed(encoder: Any, pixels: Tensor) -> Tensor:
    x: Tensor = encoder.patch_embed(pixels)
    return x if encoder.pos_embed is None else x + encoder.pos_embed
