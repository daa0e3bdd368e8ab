"""FusedEncoder: the plain image encoder's modules, run in fewer passes over memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfast.encoding import fused_operations as ops
from samfast.encoding.known_blocks import check_blocks
from samfast.linear.fp8 import Fp8Linear
from samfast.model.image_encoder import ImageEncoderViT

MAX_BATCH = 16
"""Images that go through the blocks together. More would make no product faster, and the hidden
layer of 32 takes 768 MiB for ViT-B."""


class FusedEncoder(nn.Module):
    """As `ImageEncoderViT`, with the weights and attention of that module.

    Only the order of sums differs. A dense product adds itself to the residual stream; its bias is
    kept back and added in the next norm (`pending_bias`). So the residual stream x is written by
    matrix products and read by these and by norms, in no other pass.

    Linear layers may be those of `samfast.linear`; the norm or GELU before such a layer quantizes
    its rows.

    Raises UnsupportedRecipeError for an encoder with other norms or activations than SAM's.
    """

    def __init__(self, encoder: ImageEncoderViT) -> None:
        super().__init__()
        check_blocks(encoder, "fuse=True")
        self.encoder = encoder
        for number, block in enumerate(encoder.blocks):
            self.register_buffer(f"bound_{number}", _hidden_bound(block), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) pixels -> (B, C, S / patch, S / patch), channels last in memory."""
        if len(pixels) > MAX_BATCH:
            return torch.cat([self._encode(part) for part in torch.split(pixels, MAX_BATCH)])
        return self._encode(pixels)

    def _encode(self, pixels: Tensor) -> Tensor:
        encoder, proj = self.encoder, self.encoder.patch_embed.proj
        rows = ops.patches(pixels.contiguous(), proj.kernel_size[0], proj.weight.dtype)
        x = rows @ proj.weight.flatten(1).T
        positions = None if encoder.pos_embed is None else encoder.pos_embed.flatten(0, 2)
        biases = _pending_biases(encoder, proj.bias if positions is None else None)
        stream = _Stream(x, positions, proj.bias, biases)
        batch, grid = pixels.shape[0], pixels.shape[-1] // proj.kernel_size[0]
        for number, block in enumerate(encoder.blocks):
            _block(stream, block, (batch, grid, grid), getattr(self, f"bound_{number}"))
        return _neck(encoder.neck, stream, (batch, grid, grid))


class _Stream:
    """The residual stream, x + pending_product + pending_bias: rows, and what is not added yet.

    biases  the pending bias after each dense product, in their order
    """

    def __init__(
        self,
        x: Tensor,
        pending_product: Tensor | None,
        pending_bias: Tensor | None,
        biases: list[Tensor | None],
    ) -> None:
        self.x, self.pending_product, self.pending_bias = x, pending_product, pending_bias
        self.biases = iter(biases)

    def norm(self, layer: nn.LayerNorm, kind: str) -> tuple[Tensor, Tensor]:
        """The stream normalised, and the scales of its rows."""
        weight, bias, eps = layer.weight, layer.bias, layer.eps
        if self.pending_product is None:
            return ops.norm(self.x, self.pending_bias, weight, bias, eps, kind)
        self.x, out, scales = ops.add_norm(
            self.x, self.pending_product, self.pending_bias, weight, bias, eps, kind
        )
        self.pending_product = self.pending_bias = None
        return out, scales

    def add_product(self, rows: Tensor, scales: Tensor | None, layer: nn.Module) -> None:
        """Add layer(rows): a dense product at once, another one in the next norm."""
        if type(layer) is nn.Linear:
            assert self.pending_product is None, "a norm lies between two products"
            self.x = self.x.addmm_(rows, layer.weight.T)
            self.pending_bias = next(self.biases)
        else:
            self.pending_product = _product(rows, scales, layer)

    def product(self, weight: Tensor) -> Tensor:
        """The stream times a matrix, the pending bias as a bias of the product."""
        x = self.x if self.pending_product is None else self.x + self.pending_product
        bias = self.pending_bias
        return F.linear(x, weight, None if bias is None else weight @ bias.to(weight.dtype))


def _pending_biases(encoder: ImageEncoderViT, bias: Tensor | None) -> list[Tensor | None]:
    """The pending bias after each dense product: running sums, computed together.

    bias  the pending one before the first
    A product that is not dense is added in the next norm, and with it all that is pending.
    """
    runs: list[list[Tensor | None]] = [[bias]]
    for block in encoder.blocks:
        for layer in (block.attn.proj, block.mlp.lin2):  # type: ignore[union-attr]
            if type(layer) is nn.Linear:
                runs[-1].append(layer.bias)
            else:
                runs.append([None])
    pending: list[Tensor | None] = []
    for run in runs:
        biases = [each for each in run if each is not None]
        sums = torch.stack(biases).float().cumsum(0) if len(biases) > 1 else biases
        count = 0
        for i, each in enumerate(run):
            count += each is not None
            if i:
                pending.append(sums[count - 1] if count else None)
    return pending


def _hidden_bound(block: Any) -> Tensor | None:
    """() float32, above every hidden value of the block's MLP if both its layers are float8.

    A normalised row of C values has length sqrt(C). So by Cauchy and Schwarz no value before GELU
    exceeds sqrt(C) |w * norm weight| + |w . norm bias + b|, with w the row of lin1's weight; GELU
    makes none larger. A sixteenth more, as the values of a row are rounded to float8 before.
    """
    lin1, norm = block.mlp.lin1, block.norm2
    if not isinstance(lin1, Fp8Linear) or _kind(block.mlp.lin2) != "fp8" or lin1.bias is None:
        return None
    with torch.no_grad():
        weight = lin1.weight.float() * lin1.weight_scale[:, None]
        lengths = (weight * norm.weight.float()).norm(dim=1) * weight.shape[1] ** 0.5
        shift = weight @ norm.bias.float() + lin1.bias.float()
        bound: Tensor = (lengths + shift.abs()).max() * (1 + 2**-4)
        return bound


def _block(
    stream: _Stream, block: Any, grid: tuple[int, int, int], hidden_bound: Tensor | None
) -> None:
    attn, mlp = block.attn, block.mlp
    qkv = _product(*stream.norm(block.norm1, _kind(attn.qkv)), attn.qkv)
    window = block.window_size
    answers = attn.attend(
        qkv.view(*grid, -1),
        attn.rel_pos_h,
        attn.rel_pos_w,
        num_heads=attn.num_heads,
        window=window,
        pad=attn.qkv.bias if window else None,
    ).flatten(0, 2)
    del qkv
    rows, scales = answers, None
    if _kind(attn.proj):
        rows, scales = ops.quantize(answers, _kind(attn.proj))
    del answers
    stream.add_product(rows, scales, attn.proj)
    del rows
    rows, scales = stream.norm(block.norm2, _kind(mlp.lin1))
    stream.add_product(*_hidden(mlp, rows, scales, hidden_bound), mlp.lin2)


def _hidden(
    mlp: Any, rows: Tensor, scales: Tensor, bound: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The hidden values of an MLP after GELU, as its second layer takes them, and their scales."""
    first, kind = mlp.lin1, _kind(mlp.lin2)
    if bound is not None and ops.multiplies_with_gelu(rows, first.weight):
        weight, weight_scale = first.weight, first.weight_scale
        return ops.linear_gelu_fp8(rows, scales, weight, weight_scale, first.bias, bound)
    if type(first) is nn.Linear and first.bias is not None and not kind:
        return ops.linear_gelu(rows, first.weight, first.bias), None
    hidden = _product(rows, scales, first)
    if kind:
        return ops.gelu(hidden, kind)
    ops.gelu_(hidden)
    return hidden, None


def _kind(layer: nn.Module) -> str:
    """What the rows of a layer are quantized to, as the operations name it."""
    return getattr(layer, "kind", "")


def _product(rows: Tensor, scales: Tensor | None, layer: Any) -> Tensor:
    """The layer applied to rows, already quantized to its kind."""
    if not _kind(layer):
        out: Tensor = layer(rows)
        return out
    product: Tensor = layer.matmul(rows, scales)
    return product


def _neck(neck: Any, stream: _Stream, grid: tuple[int, int, int]) -> Tensor:
    """The neck with channels last: its norms are of rows, its first convolution is a product."""
    conv_1, norm_1, conv_2, norm_2 = neck
    rows = stream.product(conv_1.weight.flatten(1))
    rows, _ = ops.norm(rows, None, norm_1.weight, norm_1.bias, norm_1.eps, "")
    image = rows.view(*grid, -1).permute(0, 3, 1, 2)
    weight = conv_2.weight.contiguous(memory_format=torch.channels_last)
    image = F.conv2d(image, weight, padding=conv_2.padding)
    rows = image.permute(0, 2, 3, 1).reshape(len(rows), -1)
    rows, _ = ops.norm(rows, None, norm_2.weight, norm_2.bias, norm_2.eps, "")
    return rows.view(*grid, -1).permute(0, 3, 1, 2)
