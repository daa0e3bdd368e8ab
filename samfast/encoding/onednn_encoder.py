"""OneDnnEncoder: the plain image encoder's modules on a CPU, a strip of tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfast.device.parameter_watcher import ParameterWatcher, Snapshot
from samfast.encoding.fused_operations import patches
from samfast.encoding.known_blocks import check_blocks
from samfast.linear.onednn_layers import PackedLayer, pack_layer
from samfast.model.image_encoder import ImageEncoderViT

STRIP = 14
"""Rows of tokens of a block with global attention that go through its other layers together."""


class OneDnnEncoder(nn.Module):
    """As `ImageEncoderViT`, with the weights and attention of that module.

    The linear layers are oneDNN's products with packed weights, GELU and the residual additions are
    inside these. A row of windows goes through a whole block before the next one, so that what lies
    between two layers stays in the cache: the hidden layer of a whole image takes 48 MiB for ViT-B.

    The weights are packed at the first call, and again when they have changed since.

    Raises UnsupportedRecipeError for an encoder with other norms or activations than SAM's.
    """

    def __init__(self, encoder: ImageEncoderViT) -> None:
        super().__init__()
        check_blocks(encoder, "products='onednn'")
        self.encoder = encoder
        self._watcher = ParameterWatcher(encoder)
        self._packed_from: Snapshot | None = None
        self._packed: dict[nn.Module, PackedLayer] = {}

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) pixels -> (B, C, S / patch, S / patch), channels last in memory."""
        # Writes to tensors made in inference mode leave no trace, so these are packed at each call.
        traced = not any(map(Tensor.is_inference, self._watcher.tensors))
        snapshot = self._watcher.snapshot() if traced else None
        if snapshot is None or snapshot != self._packed_from:
            self._pack()
            self._packed_from = snapshot
        return torch.cat([self._encode(image) for image in torch.split(pixels, 1)])

    def _pack(self) -> None:
        encoder: Any = self.encoder
        layers: list[Any] = [encoder.patch_embed.proj, encoder.neck[0]]
        for block in encoder.blocks:
            attn, mlp = block.attn, block.mlp
            layers += [attn.qkv, attn.proj, mlp.lin1, mlp.lin2]
        self._packed = {layer: pack_layer(layer) for layer in layers}

    def _encode(self, pixels: Tensor) -> Tensor:
        """One image, (1, 3, S, S)."""
        encoder: Any = self.encoder
        proj = encoder.patch_embed.proj
        rows = patches(pixels.contiguous(), proj.kernel_size[0], proj.weight.dtype)
        positions = None if encoder.pos_embed is None else encoder.pos_embed.flatten(0, 2)
        x = self._packed[proj](rows, add=positions)
        side = pixels.shape[-1] // proj.kernel_size[0]
        x = x.view(side, side, -1)
        qkv = x.new_empty(0)
        for block in encoder.blocks:
            if block.window_size:
                self._windowed_block(x, block)
                continue
            if not qkv.numel():
                qkv = x.new_empty(side, side, 3 * x.shape[-1])
            self._global_block(x, block, qkv)
        return self._neck(x)

    def _windowed_block(self, x: Tensor, block: Any) -> None:
        """A block on tokens x (H, W, C) in place, a row of windows at a time."""
        attn = block.attn
        for rows in _strips(len(x), block.window_size):
            strip = x[rows]
            qkv = self._product(attn.qkv, _norm(strip, block.norm1))
            answers = attn.attend(
                qkv.view(1, *strip.shape[:2], -1),
                attn.rel_pos_h,
                attn.rel_pos_w,
                num_heads=attn.num_heads,
                window=block.window_size,
                pad=attn.qkv.bias,
            )
            self._after_attention(strip, answers[0], block)

    def _global_block(self, x: Tensor, block: Any, qkv: Tensor) -> None:
        """A block on tokens x (H, W, C) in place; qkv (H, W, 3 * C) is overwritten."""
        attn = block.attn
        for rows in _strips(len(x), STRIP):
            qkv[rows] = self._product(attn.qkv, _norm(x[rows], block.norm1)).view_as(qkv[rows])
        answers = attn.attend(
            qkv[None],
            attn.rel_pos_h,
            attn.rel_pos_w,
            num_heads=attn.num_heads,
            window=0,
            pad=None,
        )[0]
        for rows in _strips(len(x), STRIP):
            self._after_attention(x[rows], answers[rows], block)

    def _after_attention(self, strip: Tensor, answers: Tensor, block: Any) -> None:
        """The rest of a block on some rows of tokens (h, W, C), in place."""
        mlp = block.mlp
        rows = strip.flatten(0, 1)
        rows = self._packed[block.attn.proj](answers.flatten(0, 1), add=rows)
        hidden = self._packed[mlp.lin1](_norm(rows, block.norm2), gelu=True)
        strip.copy_(self._packed[mlp.lin2](hidden, add=rows).view_as(strip))

    def _product(self, layer: nn.Module, rows: Tensor) -> Tensor:
        """The layer applied to tokens (h, W, K) -> (h * W, N)."""
        return self._packed[layer](rows.flatten(0, 1))

    def _neck(self, x: Tensor) -> Tensor:
        """The neck with channels last: its first convolution is a product."""
        neck: Any = self.encoder.neck
        conv_1, norm_1, conv_2, norm_2 = neck
        rows = _norm(self._packed[conv_1](x.flatten(0, 1)), norm_1)
        image = rows.view(1, *x.shape[:2], -1).permute(0, 3, 1, 2)
        weight = conv_2.weight.contiguous(memory_format=torch.channels_last)
        image = F.conv2d(image, weight, padding=conv_2.padding)
        return _norm(image.permute(0, 2, 3, 1), norm_2).permute(0, 3, 1, 2)


def _strips(rows: int, step: int) -> Iterator[slice]:
    return (slice(top, min(rows, top + step)) for top in range(0, rows, step))


def _norm(rows: Tensor, layer: Any) -> Tensor:
    return F.layer_norm(rows, rows.shape[-1:], layer.weight, layer.bias, layer.eps)
