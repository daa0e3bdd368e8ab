"""Walking through the encoder with photos, so that each layer is pruned knowing what reaches it and what it should say.

Two streams go through the blocks in step: that of the model as it was, and that of the model as it becomes. A
pruned layer sees the second stream and should answer what the first one has; where its answer is added to the
residual stream, also what the layers before it have missed so far. Errors are thus made up for instead of piling up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samfast.linear.prune import Moments
from samfast.model.sam import Sam

Prune = Callable[[str, nn.Linear, Moments], None]
"""Called with a layer's name, the layer, to be changed in place, and its moments."""


@torch.no_grad()
def walk(
    sam: Sam,
    images: Sequence[Tensor],
    layers: Sequence[str],
    prune: Prune,
    *,
    blocks: Sequence[int] | None = None,
    progress: Callable[[int], object] | None = None,
    residual: bool = True,
) -> None:
    """Call `prune` for each of the layers, from the first block to the last.

    images    normalised pixels (1, 3, S, S) each, on any device
    layers    of `samfast.recipes.recipe.LAYERS`
    blocks    which blocks; None: all
    progress  called with 1 for each block that is done
    """
    encoder = sam.image_encoder
    stream = [_embed(encoder, pixels.to(sam.device)) for pixels in images]
    pairs = [(x, x.clone()) for x in stream]
    for index, block in enumerate(encoder.blocks):
        chosen = set(layers) if blocks is None or index in blocks else set()
        pairs = _block(block, pairs, chosen, lambda *a, i=index: prune(f"{i}.{a[0]}", *a[1:]), residual)
        if progress is not None:
            progress(1)


def _embed(encoder: Any, pixels: Tensor) -> Tensor:
    x: Tensor = encoder.patch_embed(pixels)
    return x if encoder.pos_embed is None else x + encoder.pos_embed


def _block(block: Any, pairs: list[tuple[Tensor, Tensor]], layers: set[str], prune: Prune, residual: bool):
    attn, mlp = block.attn, block.mlp

    def step(name: str, layer: nn.Linear, rows: list[tuple[Tensor, Tensor]], lacking: bool):
        """The layer's answers in both streams, the layer pruned in between if it is to be."""
        wanted = []
        moments = Moments.of(layer.out_features, layer.in_features, layer.weight.device) if name in layers else None
        for (was, now), (x, y) in zip(rows, pairs, strict=True):
            answer = layer(was)
            wanted.append(answer)
            if moments is not None:
                target = answer + (x - y) if lacking and residual else answer
                moments.add(now.flatten(0, -2), target.flatten(0, -2))
        if moments is not None:
            prune(name, layer, moments)
        return [(a, layer(now)) for a, (_, now) in zip(wanted, rows, strict=True)]

    def both(function, rows):
        return [(function(a), function(b)) for a, b in rows]

    old_pad = None if attn.qkv.bias is None else attn.qkv.bias.clone()

    def attend(qkv: Tensor) -> Tensor:
        out: Tensor = attn.attend(
            qkv,
            attn.rel_pos_h,
            attn.rel_pos_w,
            num_heads=attn.num_heads,
            window=block.window_size,
            pad=old_pad if block.window_size else None,
        )
        return out

    rows = both(block.norm1, pairs)
    rows = step("qkv", attn.qkv, rows, False)
    rows = both(attend, rows)
    rows = step("proj", attn.proj, rows, True)
    pairs = [(x + a, y + b) for (x, y), (a, b) in zip(pairs, rows, strict=True)]
    rows = both(block.norm2, pairs)
    rows = step("lin1", mlp.lin1, rows, False)
    rows = both(mlp.act, rows)
    rows = step("lin2", mlp.lin2, rows, True)
    return [(x + a, y + b) for (x, y), (a, b) in zip(pairs, rows, strict=True)]
