"""SAM for training: on crops of the 1024-pixel frame, with stochastic depth and many objects."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samfast.attention.folded import attend
from samfast.model.image_encoder import Block
from samfast.model.sam import Sam
from samfast.types import PADDING_LABEL


def drop_path(x: Tensor, share: float) -> Tensor:
    """Stochastic depth (Huang et al. 2016): drop a residual branch for a share of the batch."""
    if share == 0:
        return x
    keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= share
    return x * (keep / (1 - share)).to(x.dtype)


class Trainee(nn.Module):
    """A Sam and the two functions that training calls, of fixed shapes, so that each compiles once.

    A crop of side S < 1024 lies at `corner` of the 1024-pixel frame. It uses that part of the
    absolute positions, and the middle of the global blocks' relative positions, so that a distance
    in pixels means the same at every crop size.
    """

    def __init__(self, sam: Sam, drop: float = 0.1) -> None:
        super().__init__()
        self.sam = sam
        blocks = sam.image_encoder.blocks
        self.drops = [drop * i / max(1, len(blocks) - 1) for i in range(len(blocks))]

    def encode(self, pixels: Tensor, corner: Tensor) -> Tensor:
        """(B, 3, S, S) pixels -> (B, C, S / 16, S / 16); corner (2,) row and column in tokens."""
        encoder = self.sam.image_encoder
        x = encoder.patch_embed(pixels)
        grid = x.shape[1]
        if encoder.pos_embed is not None:
            rows = corner[0] + torch.arange(grid, device=x.device)
            columns = corner[1] + torch.arange(grid, device=x.device)
            x = x + encoder.pos_embed[:, rows][:, :, columns]
        for block, drop in zip(encoder.blocks, self.drops, strict=True):
            assert isinstance(block, Block)
            x = x + drop_path(
                self._attention(block, block.norm1(x), grid), drop if self.training else 0
            )
            x = x + drop_path(block.mlp(block.norm2(x)), drop if self.training else 0)
        out: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
        return out

    def _attention(self, block: Block, x: Tensor, grid: int) -> Tensor:
        attention = block.attn
        rel_pos_h: Tensor | None = attention.rel_pos_h
        rel_pos_w: Tensor | None = attention.rel_pos_w
        assert rel_pos_h is not None and rel_pos_w is not None
        if not block.window_size:
            middle = slice((len(rel_pos_h) + 1) // 2 - grid, (len(rel_pos_h) + 1) // 2 + grid - 1)
            rel_pos_h, rel_pos_w = rel_pos_h[middle], rel_pos_w[middle]
        qkv = attention.qkv(x)
        out: Tensor = attention.proj(
            attend(
                qkv,
                rel_pos_h.to(qkv.dtype),
                rel_pos_w.to(qkv.dtype),
                num_heads=attention.num_heads,
                window=block.window_size,
                pad=attention.qkv.bias,
            )
        )
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
        count = coords.shape[0]
        if previous is None:
            dense = prompt.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(count, -1, grid, grid)
        else:
            dense = prompt.mask_downscaling(previous[:, None])
        each = features.repeat_interleave(count // features.shape[0], dim=0)
        masks, iou = self.sam.mask_decoder.predict_masks(each, position, sparse, dense, token_mask)
        return masks.float(), iou.float()


def initialise(sam: Sam) -> None:
    """Initialise the encoder as ViTs usually are: truncated normals, and zero biases."""
    for module in sam.image_encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    assert sam.image_encoder.pos_embed is not None
    nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
