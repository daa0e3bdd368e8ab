"""SAM's mask decoder: image embedding and prompt tokens to low-resolution masks and their quality.

Kirillov et al. 2023, section A ("Mask decoder"); original `modeling/mask_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from samfast.model.layers import MLP, LayerNorm2d
from samfast.model.transformer import TwoWayTransformer


class MaskDecoder(nn.Module):
    """The mask decoder; constructor arguments are the original's."""

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
        """Masks (P, M, 4 * h, 4 * w) as logits and their predicted IoU (P, M).

        M is 3, or 1 (the single-mask token) without multimask_output; the rest as `predict_masks`.
        """
        masks, iou = self.predict_masks(
            image_embeddings,
            image_pe,
            sparse_prompt_embeddings,
            dense_prompt_embeddings,
            token_mask,
        )
        chosen = self.chosen(multimask_output)
        return masks[:, chosen], iou[:, chosen]

    def chosen(self, multimask_output: bool) -> slice:
        """Which of the four masks are answered."""
        return slice(1, None) if multimask_output else slice(0, 1)

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All four masks (P, 4, 4 * h, 4 * w) and their predicted IoU (P, 4).

        image_embeddings          (1, C, h, w), shared by all objects, or (P, C, h, w), one for each
        image_pe                  (1, C, h, w)
        sparse_prompt_embeddings  (P, T, C)
        dense_prompt_embeddings   (P, C, h, w)
        token_mask                (P, T) bool, False where a sparse token is only padding
        """
        decoded, source = self.transform(
            image_embeddings,
            image_pe,
            sparse_prompt_embeddings,
            dense_prompt_embeddings,
            token_mask,
        )
        return self.masks(decoded, source), self.quality(decoded)

    def transform(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What tokens (P, 5 + T, C) and images (P, C, h, w) are after the transformer; as
        `predict_masks`.
        """
        count = sparse_prompt_embeddings.shape[0]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(count, -1, -1), sparse_prompt_embeddings], dim=1)
        source = self._image(image_embeddings, dense_prompt_embeddings)
        position = image_pe if source.shape[0] == 1 else image_pe.expand_as(source)
        _, channels, height, width = source.shape

        if token_mask is None:
            decoded, source = self.transformer(source, position, tokens)
        else:
            always = token_mask.new_ones(count, own.shape[0])
            decoded, source = self.transformer(
                source, position, tokens, token_mask=torch.cat([always, token_mask], dim=1)
            )
        return decoded, source.transpose(1, 2).view(count, channels, height, width)

    def masks(self, decoded: Tensor, source: Tensor) -> Tensor:
        """Logits (P, 4, 4 * h, 4 * w) of what `transform` answers: a small network's product with
        each pixel.
        """
        masks_out = decoded[:, 1 : 1 + self.num_mask_tokens]
        upscaled: Tensor = self.output_upscaling(source)
        kernels = [mlp(masks_out[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.stack(kernels, dim=1) @ upscaled.flatten(2)
        return masks.view(len(decoded), -1, *upscaled.shape[-2:])

    def quality(self, decoded: Tensor) -> Tensor:
        """Predicted IoU (P, 4) of those masks."""
        iou: Tensor = self.iou_prediction_head(decoded[:, 0])
        return iou

    def _image(self, image_embeddings: Tensor, dense: Tensor) -> Tensor:
        """What the tokens look at: (P, C, h, w), or (1, C, h, w) if it is the same for all P
        objects.
        """
        count = dense.shape[0]
        shared = (
            image_embeddings.shape[0] == 1 and dense.stride(0) == 0
        )  # one image, no mask prompts
        if shared and type(self.transformer) is TwoWayTransformer:
            return image_embeddings + dense[:1]
        if image_embeddings.shape[0] != count:
            image_embeddings = torch.repeat_interleave(image_embeddings, count, dim=0)
        return image_embeddings + dense
