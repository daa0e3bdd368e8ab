"""SAM's prompt encoder: points and boxes to tokens, masks to a dense map.

Kirillov et al. 2023, section A ("Prompt encoder"); original `modeling/prompt_encoder.py`, whose
names these are, private helpers included, because projects written for it call them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from samfast.model.layers import LayerNorm2d
from samfast.types import Size


class PromptEncoder(nn.Module):
    """Positional encodings plus a learned vector per kind of token; convolutions for masks."""

    def __init__(
        self,
        embed_dim: int,
        image_embedding_size: Size,
        input_image_size: Size,
        mask_in_chans: int,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.input_image_size = input_image_size
        self.image_embedding_size = image_embedding_size
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.num_point_embeddings = 4  # background, foreground, and the two corners of a box
        self.point_embeddings: Sequence[nn.Embedding] = nn.ModuleList(  # type: ignore[assignment]
            nn.Embedding(1, embed_dim) for _ in range(self.num_point_embeddings)
        )
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_input_size = (4 * image_embedding_size[0], 4 * image_embedding_size[1])
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            activation(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans),
            activation(),
            nn.Conv2d(mask_in_chans, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embed the prompts of P objects.

        points   coordinates (P, K, 2), XY in input pixels, and labels (P, K)
        boxes    (P, 4) XYXY in input pixels
        masks    (P, 1, 4 * h, 4 * w) logits
        returns  sparse (P, tokens, C), where points without a box are followed by one "not a point"
                 token, and dense (P, C, h, w)
        """
        count = self._get_batch_size(points, boxes, masks)
        tokens = []
        if points is not None:
            tokens.append(self._embed_points(points[0], points[1], pad=boxes is None))
        if boxes is not None:
            tokens.append(self._embed_boxes(boxes))
        tokens = tokens or [self.no_mask_embed.weight.new_empty(count, 0, self.embed_dim)]
        sparse = torch.cat(tokens, dim=1)
        if masks is not None:
            return sparse, self._embed_masks(masks)
        dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return sparse, dense.expand(count, -1, *self.image_embedding_size)

    def get_dense_pe(self) -> Tensor:
        """(1, C, h, w): the positional encoding of every cell of the image embedding."""
        encoding: Tensor = self.pe_layer(self.image_embedding_size)
        return encoding.unsqueeze(0).to(self.no_mask_embed.weight.dtype)

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        points = points + 0.5  # to the centre of the pixel
        if pad:
            points = torch.cat([points, points.new_zeros(points.shape[0], 1, 2)], dim=1)
            labels = torch.cat([labels, labels.new_full((labels.shape[0], 1), -1)], dim=1)
        encoding = self.pe_layer.forward_with_coords(points, self.input_image_size)
        background, foreground = self.point_embeddings[0].weight, self.point_embeddings[1].weight
        encoding = encoding.to(background.dtype)
        kind = labels[..., None]
        # torch.where, because indexing by the labels would synchronise with the GPU.
        encoding = torch.where(kind == -1, self.not_a_point_embed.weight, encoding)
        encoding = torch.where(kind == 0, encoding + background, encoding)
        return torch.where(kind == 1, encoding + foreground, encoding)

    def _embed_boxes(self, boxes: Tensor) -> Tensor:
        corners = (boxes + 0.5).reshape(-1, 2, 2)
        encoding = self.pe_layer.forward_with_coords(corners, self.input_image_size)
        kinds = torch.cat([self.point_embeddings[2].weight, self.point_embeddings[3].weight])
        return encoding.to(kinds.dtype) + kinds

    def _embed_masks(self, masks: Tensor) -> Tensor:
        out: Tensor = self.mask_downscaling(masks.to(self.no_mask_embed.weight.dtype))
        return out

    def _get_batch_size(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> int:
        for given in (points[0] if points is not None else None, boxes, masks):
            if given is not None:
                return given.shape[0]
        return 1

    def _get_device(self) -> torch.device:
        return self.no_mask_embed.weight.device


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of a point (Tancik et al. 2020), in float32 for every model dtype."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_pos_feats: int = 64, scale: float | None = None) -> None:
        super().__init__()
        if scale is None or scale <= 0.0:
            scale = 1.0
        self.register_buffer(
            "positional_encoding_gaussian_matrix", scale * torch.randn((2, num_pos_feats))
        )

    def forward(self, size: Size) -> Tensor:
        """(2 * num_pos_feats, h, w): the encoding of every cell of a grid of that size."""
        height, width = size
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        return self._pe_encoding(grid).permute(2, 0, 1)

    def forward_with_coords(self, coords_input: Tensor, image_size: Size) -> Tensor:
        """Points (..., 2), XY in pixels of an (H, W) image -> (..., 2 * num_pos_feats)."""
        x = coords_input[..., 0] / image_size[1]
        y = coords_input[..., 1] / image_size[0]
        return self._pe_encoding(torch.stack([x, y], dim=-1).to(torch.float32))

    def _pe_encoding(self, coords: Tensor) -> Tensor:
        """Points (..., 2) in [0, 1] -> (..., 2 * num_pos_feats)."""
        matrix = self.positional_encoding_gaussian_matrix.to(torch.float32)
        phase = 2 * math.pi * ((2 * coords - 1) @ matrix)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)
