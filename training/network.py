"""SAM for training: on crops of the 1024-pixel frame, with stochastic depth and many objects."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfast.attention.folded import attend
from samfast.model.image_encoder import Block, ImageEncoderViT
from samfast.model.layers import LayerNorm2d
from samfast.model.mask_decoder import MaskDecoder
from samfast.model.prompt_encoder import PromptEncoder
from samfast.model.sam import Sam
from samfast.types import PADDING_LABEL


def run_block(block: Block, x: Tensor, keep: Tensor) -> Tensor:
    """An encoder block on (B, H, W, C); `keep` (2, B) scales its two residual branches.

    The middle of the global blocks' relative positions is used where the grid is smaller.
    """
    attention, grid = block.attn, x.shape[1]
    rel_pos_h: Tensor | None = attention.rel_pos_h
    rel_pos_w: Tensor | None = attention.rel_pos_w
    assert rel_pos_h is not None and rel_pos_w is not None
    if not block.window_size:
        middle = slice((len(rel_pos_h) + 1) // 2 - grid, (len(rel_pos_h) + 1) // 2 + grid - 1)
        rel_pos_h, rel_pos_w = rel_pos_h[middle], rel_pos_w[middle]
    qkv = attention.qkv(block.norm1(x))
    attended: Tensor = attention.proj(
        attend(
            qkv,
            rel_pos_h.to(qkv.dtype),
            rel_pos_w.to(qkv.dtype),
            num_heads=attention.num_heads,
            window=block.window_size,
            pad=attention.qkv.bias,
        )
    )
    scale = keep[:, :, None, None, None].to(qkv.dtype)
    x = x + attended * scale[0]
    out: Tensor = x + block.mlp(block.norm2(x)) * scale[1]
    return out


def answer(
    decoder: MaskDecoder, image: Tensor, position: Tensor, sparse: Tensor, token_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The decoder on P images (P, C, g, g) that already hold the dense prompts."""
    count, channels, height, width = image.shape
    learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([learned.expand(count, -1, -1), sparse], dim=1)
    always = token_mask.new_ones(count, learned.shape[0])
    tokens, image = decoder.transformer(
        image, position, tokens, token_mask=torch.cat([always, token_mask], dim=1)
    )
    image = image.transpose(1, 2).view(count, channels, height, width)
    return decoder.mask_logits(tokens, image).float(), decoder.predicted_iou(tokens).float()


def embed_masks(prompt: PromptEncoder, logits: Tensor) -> Tensor:
    """Logits (P, 1, 4 * g, 4 * g) of an earlier round as dense prompts (P, C, g, g)."""
    out: Tensor = prompt.mask_downscaling(logits)
    return out


def neck(encoder: ImageEncoderViT, x: Tensor) -> Tensor:
    """Tokens (B, g, g, C') of the last block to features (B, C, g, g)."""
    out: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
    return out


def fused_attention(fused: bool) -> None:
    """Choose PyTorch's kernel for attention on a GPU, for code that is compiled after this call.

    cuDNN's is the fastest for the encoder. The decoder's attention has a dozen tokens on one side
    and heads of 16 channels: there plain matrix products are several times faster than any.
    """
    torch.backends.cuda.enable_cudnn_sdp(fused)
    torch.backends.cuda.enable_flash_sdp(fused)
    torch.backends.cuda.enable_mem_efficient_sdp(fused)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


class HalfLayerNorm(nn.LayerNorm):
    """A layer norm that answers in its input's type, where autocast would answer in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C); statistics are float32."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class HalfLayerNorm2d(LayerNorm2d):
    """As `HalfLayerNorm`, over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            out = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, self.eps)
            return out.permute(0, 3, 1, 2)


def halve_norms(module: nn.Module) -> None:
    """Let the layer norms of a module answer in half precision: half of its memory traffic."""
    for part in module.modules():
        if type(part) is nn.LayerNorm:
            part.__class__ = HalfLayerNorm
        elif type(part) is LayerNorm2d:
            part.__class__ = HalfLayerNorm2d


class Trainee(nn.Module):
    """A Sam and the two functions that training calls.

    A crop of side S < 1024 lies at `corner` of the 1024-pixel frame. It uses that part of the
    absolute positions, and the middle of the global blocks' relative positions, so that a distance
    in pixels means the same at every crop size.

    Only a block, the decoder's core and the neck are compiled: the blocks then share their code,
    which takes a fraction of the time that compiling the whole encoder takes.
    """

    def __init__(self, sam: Sam, drop: float = 0.1, compiled: bool = False) -> None:
        super().__init__()
        self.sam = sam
        blocks = sam.image_encoder.blocks
        self.drops = [drop * i / max(1, len(blocks) - 1) for i in range(len(blocks))]
        halve_norms(sam.mask_decoder)
        halve_norms(sam.prompt_encoder)
        compile: Any = partial(torch.compile, dynamic=False) if compiled else lambda f: f
        self.run_block, self.neck = compile(run_block), compile(neck)
        self.embed_masks, self.answer = compile(embed_masks), compile(answer)

    def encode(self, pixels: Tensor, corner: Tensor) -> Tensor:
        """(B, 3, S, S) pixels -> (B, C, S / 16, S / 16); corner (2,) row and column in tokens."""
        fused_attention(True)
        encoder = self.sam.image_encoder
        x = encoder.patch_embed(pixels)
        grid, device = x.shape[1], x.device
        if encoder.pos_embed is not None:
            rows = corner[0] + torch.arange(grid, device=device)
            columns = corner[1] + torch.arange(grid, device=device)
            x = x + encoder.pos_embed[:, rows][:, :, columns]
        for block, drop in zip(encoder.blocks, self.drops, strict=True):
            assert isinstance(block, Block)
            drop = drop if self.training else 0.0
            # Stochastic depth (Huang et al. 2016): drop a branch for a share of the batch.
            keep = (torch.rand(2, len(x), device=device) >= drop) / (1 - drop)
            x = self.run_block(block, x, keep)
        out: Tensor = self.neck(encoder, x)
        return out

    def decode(
        self,
        features: Tensor,
        corner: Tensor,
        coords: Tensor,
        labels: Tensor,
        box: Tensor,
        has_box: Tensor,
        previous: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits and predicted IoU of all four masks of K objects per image.

        features  (B, C, g, g)
        coords    (B * K, R, 2) and box (B * K, 4), in pixels of the crop
        labels    (B * K, R); has_box (B * K,) bool
        previous  (B * K, 4 * g, 4 * g) logits to feed back, or None
        returns   (B * K, 4, 4 * g, 4 * g) and (B * K, 4)
        """
        fused_attention(False)
        prompt, grid = self.sam.prompt_encoder, features.shape[-1]
        with torch.autocast(features.device.type, enabled=False):
            offset = corner.flip(0).float() * 16
            points = prompt._embed_points(coords + offset, labels, pad=False)
            nowhere = prompt._embed_points(
                torch.zeros_like(coords[:, :1]), -torch.ones_like(labels[:, :1]), pad=False
            )
            corners = prompt._embed_boxes(box + offset.repeat(2))
            position = prompt.get_dense_pe()
        sparse = torch.cat([points, nowhere, corners], dim=1)
        token_mask = torch.cat(
            [labels != PADDING_LABEL, ~has_box[:, None], has_box[:, None], has_box[:, None]], dim=1
        )
        rows = corner[0] + torch.arange(grid, device=features.device)
        columns = corner[1] + torch.arange(grid, device=features.device)
        position = position[:, :, rows][:, :, :, columns]
        if previous is None:
            dense = prompt.no_mask_embed.weight.reshape(1, -1, 1, 1)
        else:
            dense = self.embed_masks(prompt, previous[:, None])
        kind = torch.get_autocast_dtype(features.device.type)
        kind = kind if torch.is_autocast_enabled(features.device.type) else features.dtype
        each = features.to(kind).repeat_interleave(len(coords) // len(features), dim=0)
        out: tuple[Tensor, Tensor] = self.answer(
            self.sam.mask_decoder, each + dense.to(kind), position.to(kind), sparse, token_mask
        )
        return out


def initialise(sam: Sam) -> None:
    """Initialise the encoder as ViTs usually are: truncated normals, and zero biases."""
    for module in sam.image_encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    assert sam.image_encoder.pos_embed is not None
    nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
