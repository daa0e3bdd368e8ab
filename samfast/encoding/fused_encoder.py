"""FusedEncoder: the plain image encoder's modules, run in fewer passes over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfast.encoding.fused_operations import Operations, operations
from samfast.errors import UnsupportedRecipeError
from samfast.model.image_encoder import Attention, Block, ImageEncoderViT

TOGETHER = 16
"""Images that go through the blocks side by side. More would make no product faster, and the hidden
layer of 32 is 768 MiB for ViT-B."""


class FusedEncoder(nn.Module):
    """As `ImageEncoderViT`, with that module's own weights and attention.

    What differs is the order of the sums. A residual addition whose product is dense happens in the
    product itself; the bias of that product is not added there but kept back, and added in the next
    norm (`shift`). So x, the residual stream, is read and written by matrix products and read by
    norms, and by nothing else.

    Linear layers may be those of `samfast.linear`; the norm or GELU before such a layer quantizes
    its rows.

    Raises UnsupportedRecipeError for an encoder with other norms or activations than SAM's.
    """

    def __init__(self, encoder: ImageEncoderViT) -> None:
        super().__init__()
        self.encoder = encoder
        for block in encoder.blocks:
            known = (
                isinstance(block, Block)
                and isinstance(block.attn, Attention)
                and isinstance(block.norm1, nn.LayerNorm)
                and isinstance(block.norm2, nn.LayerNorm)
                and isinstance(block.mlp.act, nn.GELU)
                and block.mlp.act.approximate == "none"
            )
            if not known:
                raise UnsupportedRecipeError(
                    "a fused recipe needs SAM's own blocks: LayerNorm, Attention and GELU by erf; "
                    "this encoder "
                    "has others, take a recipe without fuse"
                )

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, out_chans, S / patch, S / patch), channels last in
        memory.
        """
        if len(pixels) > TOGETHER:
            return torch.cat([self._encode(part) for part in torch.split(pixels, TOGETHER)])
        return self._encode(pixels)

    def _encode(self, pixels: Tensor) -> Tensor:
        encoder, ops = self.encoder, operations()
        x, positions, bias = _patches(encoder, pixels, ops)
        shifts = _shifts(encoder, bias if positions is None else None)
        stream = _Stream(ops, x, positions, bias, shifts)
        batch, grid = pixels.shape[0], pixels.shape[-1] // encoder.patch_embed.proj.kernel_size[0]
        for block in encoder.blocks:
            _block(stream, block, (batch, grid, grid))
        return _neck(encoder.neck, stream, (batch, grid, grid))


class _Stream:
    """The residual stream, x + y + shift: rows, a product not added yet, and biases not added yet.

    shifts  what `shift` becomes with each dense product, in their order
    """

    def __init__(
        self,
        ops: Operations,
        x: Tensor,
        y: Tensor | None,
        shift: Tensor | None,
        shifts: list[Tensor | None],
    ) -> None:
        self.ops, self.x, self.y, self.shift = ops, x, y, shift
        self.shifts = iter(shifts)

    def norm(self, layer: nn.LayerNorm, kind: str) -> tuple[Tensor, Tensor]:
        """The stream normalised, and the scales of its rows."""
        weight, bias, eps = layer.weight, layer.bias, layer.eps
        if self.y is None:
            return self.ops.norm(self.x, self.shift, weight, bias, eps, kind)
        self.x, out, scales = self.ops.add_norm(self.x, self.y, self.shift, weight, bias, eps, kind)
        self.y = self.shift = None
        return out, scales

    def add_product(self, rows: Tensor, scales: Tensor | None, layer: nn.Module) -> None:
        """Add layer(rows); in the product itself where torch can, in the next norm where not."""
        if type(layer) is nn.Linear:
            assert self.y is None, "a norm lies between two products"
            self.x = self.x.addmm_(rows, layer.weight.T)
            self.shift = next(self.shifts)
        else:
            self.y = _product(rows, scales, layer)

    def product(self, weight: Tensor) -> Tensor:
        """The stream times a matrix; a shift of x shifts the product."""
        x = self.x if self.y is None else self.x + self.y
        return F.linear(
            x, weight, None if self.shift is None else (weight @ self.shift.to(weight.dtype))
        )


def _patches(
    encoder: ImageEncoderViT, pixels: Tensor, ops: Operations
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The patches' embeddings as rows, the positions' as the rows to add, and the bias."""
    proj = encoder.patch_embed.proj
    rows = ops.patches(pixels.contiguous(), proj.kernel_size[0], proj.weight.dtype)
    x = rows @ proj.weight.flatten(1).T
    positions = None if encoder.pos_embed is None else encoder.pos_embed.flatten(0, 2)
    return x, positions, proj.bias


def _shifts(encoder: ImageEncoderViT, bias: Tensor | None) -> list[Tensor | None]:
    """The biases not added yet after each dense product of the residual stream: running sums, all
    made at once.

    bias  the one not added yet before the first
    A product that is not dense is added in the next norm, and with it what was kept back.
    """
    runs: list[list[Tensor | None]] = [[bias]]
    for block in encoder.blocks:
        for layer in (block.attn.proj, block.mlp.lin2):  # type: ignore[union-attr]
            if type(layer) is nn.Linear:
                runs[-1].append(layer.bias)
            else:
                runs.append([None])
    shifts: list[Tensor | None] = []
    for run in runs:
        biases = [each for each in run if each is not None]
        sums = torch.stack(biases).float().cumsum(0) if len(biases) > 1 else biases
        count = 0
        for i, each in enumerate(run):
            count += each is not None
            if i:
                shifts.append(sums[count - 1] if count else None)
    return shifts


def _block(stream: _Stream, block: Any, grid: tuple[int, int, int]) -> None:
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
    stream.add_product(*_quantized(answers, attn.proj, stream.ops.quantize), attn.proj)
    del answers
    hidden = _product(*stream.norm(block.norm2, _kind(mlp.lin1)), mlp.lin1)
    if not _kind(mlp.lin2):
        stream.ops.gelu_(hidden)
        stream.add_product(hidden, None, mlp.lin2)
    else:
        stream.add_product(*stream.ops.gelu(hidden, _kind(mlp.lin2)), mlp.lin2)


def _quantized(
    rows: Tensor, layer: nn.Module, quantize: Callable[[Tensor, str], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor | None]:
    kind = _kind(layer)
    return quantize(rows, kind) if kind else (rows, None)


def _kind(layer: nn.Module) -> str:
    """What the layer wants its rows quantized to, as the operations name it."""
    return getattr(layer, "kind", "")


def _product(rows: Tensor, scales: Tensor | None, layer: Any) -> Tensor:
    """The layer applied to rows, which are quantized already if it wants them so."""
    if not _kind(layer):
        out: Tensor = layer(rows)
        return out
    product: Tensor = layer.matmul(rows, scales)
    return product


def _neck(neck: Any, stream: _Stream, grid: tuple[int, int, int]) -> Tensor:
    """The neck with channels last, in which its norms are rows and its first convolution is a
    product.
    """
    keep_dtype, norm_1, wide, norm_2 = neck
    ops = stream.ops
    rows = stream.product(keep_dtype.weight.flatten(1))
    rows, _ = ops.norm(rows, None, norm_1.weight, norm_1.bias, norm_1.eps, "")
    image = rows.view(*grid, -1).permute(0, 3, 1, 2)
    weight = wide.weight.contiguous(memory_format=torch.channels_last)
    image = F.conv2d(image, weight, padding=wide.padding)
    rows = image.permute(0, 2, 3, 1).reshape(len(rows), -1)
    rows, _ = ops.norm(rows, None, norm_2.weight, norm_2.bias, norm_2.eps, "")
    return rows.view(*grid, -1).permute(0, 3, 1, 2)
