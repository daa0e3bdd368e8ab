"""SAM's mask decoder: image embedding and prompt tokens to low-resolution masks and their IoU.

Kirillov et al. 2023, section A ("Mask decoder"); original `modeling/mask_decoder.py`, whose
parameter names and constructor arguments these are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from samfast.model.layers import MLP, LayerNorm2d
from samfast.model.transformer import TwoWayTransformer


class MaskDecoder(nn.Module):
    """Two-way transformer, upscaling, and a small network per mask token that makes its mask."""

    def __init__(
        self,
        *,
        transformer_dim: int,
        transformer: nn.Module,
        num_multimask_outputs: int = 3,
        activation: Callable[[], nn.Module] = nn.GELU,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
    ) -> None:
        super().__init__()
        self.transformer_dim = transformer_dim
        self.transformer = transformer
        self.num_multimask_outputs = num_multimask_outputs
        self.iou_token = nn.Embedding(1, transformer_dim)
        self.num_mask_tokens = num_multimask_outputs + 1
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, transformer_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(transformer_dim, transformer_dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(transformer_dim // 4),
            activation(),
            nn.ConvTranspose2d(transformer_dim // 4, transformer_dim // 8, kernel_size=2, stride=2),
            activation(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(transformer_dim, transformer_dim, transformer_dim // 8, 3)
            for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(
            transformer_dim, iou_head_hidden_dim, self.num_mask_tokens, iou_head_depth
        )

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (P, M, 4 * h, 4 * w) and their predicted IoU (P, M).

        M is 3, or 1 (the single-mask token) without multimask_output; the rest as `predict_masks`.
        """
        prompts = sparse_prompt_embeddings, dense_prompt_embeddings
        masks, iou = self.predict_masks(image_embeddings, image_pe, *prompts, token_mask)
        returned = self.returned(multimask_output)
        return masks[:, returned], iou[:, returned]

    def returned(self, multimask_output: bool) -> slice:
        """The masks that are returned, of all four."""
        return slice(1, None) if multimask_output else slice(0, 1)

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of all four masks (P, 4, 4 * h, 4 * w) and their predicted IoU (P, 4).

        image_embeddings          (1, C, h, w), shared by all objects, or (P, C, h, w), one for each
        image_pe                  (1, C, h, w)
        sparse_prompt_embeddings  (P, T, C), or (1, T, C), shared by all objects
        dense_prompt_embeddings   (P, C, h, w), or (1, C, h, w), shared by all objects
        token_mask                (P, T) bool, False where a sparse token is only padding
        """
        prompts = sparse_prompt_embeddings, dense_prompt_embeddings
        tokens, image = self.transform(image_embeddings, image_pe, *prompts, token_mask)
        return self.mask_logits(tokens, image), self.predicted_iou(tokens)

    def transform(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (P, 5 + T, C) and image maps (P, C, h, w) after the transformer.

        The tokens are the IoU token, the four mask tokens and the prompts'; arguments as in
        `predict_masks`.
        """
        count = sparse.shape[0]
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([learned.expand(count, -1, -1), sparse], dim=1)
        image = self._prompted_image(image_embeddings, dense, count)
        position = image_pe if image.shape[0] == 1 else image_pe.expand_as(image)
        height, width = image.shape[-2:]
        # Transformers of other projects take no token_mask.
        masked = {}
        if token_mask is not None:
            always = token_mask.new_ones(count, learned.shape[0])
            masked = {"token_mask": torch.cat([always, token_mask], dim=1)}
        tokens, image = self.transformer(image, position, tokens, **masked)
        return tokens, image.transpose(1, 2).unflatten(2, (height, width))

    def mask_logits(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Logits (P, 4, 4 * h, 4 * w) of the tokens and image maps that `transform` returns.

        Each mask token becomes a vector, whose product with each upscaled pixel is a logit.
        """
        mask_tokens = tokens[:, 1 : 1 + self.num_mask_tokens]
        upscaled: Tensor = self.output_upscaling(image)
        vectors = [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.stack(vectors, dim=1) @ upscaled.flatten(2)
        return masks.view(len(tokens), -1, *upscaled.shape[-2:])

    def predicted_iou(self, tokens: Tensor) -> Tensor:
        """Predicted IoU (P, 4) of the four masks."""
        iou: Tensor = self.iou_prediction_head(tokens[:, 0])
        return iou

    def _prompted_image(self, image_embeddings: Tensor, dense: Tensor, count: int) -> Tensor:
        """Image plus dense prompts: (P, C, h, w), or (1, C, h, w) if equal for all P objects.

        count  of the sparse prompts
        """
        # Without mask prompts the dense embedding is one vector, expanded.
        one_dense = dense.shape[0] == 1 or (dense.shape[0] == count and dense.stride(0) == 0)
        one = image_embeddings.shape[0] == 1 and one_dense
        if one and type(self.transformer) is TwoWayTransformer:
            return image_embeddings + dense[:1]
        if image_embeddings.shape[0] != count:
            image_embeddings = torch.repeat_interleave(image_embeddings, count, dim=0)
        return image_embeddings + dense
