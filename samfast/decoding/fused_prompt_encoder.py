"""FusedPrompts: the prompt encoder's points, boxes and dense positions in one pass each."""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.device.triton_support import need_triton
from samfast.model.prompt_encoder import PositionEmbeddingRandom, PromptEncoder


class FusedPrompts:
    """As `PromptEncoder`, with the weights of that module, rounded where it rounds them.

    The plain module embeds masks. It also embeds the rest on a CPU and in float32, and if it is a
    subclass or has another positional encoding.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self.encoder = encoder
        known = type(encoder) is PromptEncoder and type(encoder.pe_layer) is PositionEmbeddingRandom
        self._known = known

    def __call__(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `PromptEncoder.forward`."""
        encoder = self.encoder
        if not self._has_kernel or (points is None and boxes is None):
            plain: tuple[Tensor, Tensor] = encoder(points=points, boxes=boxes, masks=masks)
            return plain
        from samfast.decoding.kernels.prompt_embedding import tokens

        coords, labels = (None, None) if points is None else points
        layers = (*encoder.point_embeddings, encoder.not_a_point_embed)
        embeddings = [layer.weight for layer in layers]
        sparse = tokens(coords, labels, boxes, self._matrix, embeddings, encoder.input_image_size)
        if masks is not None:
            return sparse, encoder._embed_masks(masks)
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return sparse, dense.expand(len(sparse), -1, *encoder.image_embedding_size)

    def get_dense_pe(self) -> Tensor:
        """As `PromptEncoder.get_dense_pe`, channels last in memory."""
        encoder = self.encoder
        if not self._has_kernel:
            return encoder.get_dense_pe()
        from samfast.decoding.kernels.prompt_embedding import places

        size = encoder.image_embedding_size
        rows = places(self._matrix, size, encoder.no_mask_embed.weight.dtype)
        return rows.view(1, *size, -1).permute(0, 3, 1, 2)

    @property
    def _matrix(self) -> Tensor:
        return self.encoder.pe_layer.positional_encoding_gaussian_matrix

    @property
    def _has_kernel(self) -> bool:
        weight = self.encoder.no_mask_embed.weight
        if not self._known or weight.device.type != "cuda" or weight.dtype == torch.float32:
            return False
        need_triton("a fused recipe")
        return True
