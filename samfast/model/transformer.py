"""The decoder's two-way transformer: tokens attend to the image, and the image to the tokens.

Kirillov et al. 2023, section A ("Mask decoder"), figure 14; original `modeling/transformer.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from samfast.errors import InputError
from samfast.model.layers import MLPBlock


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks and a final attention from tokens to image."""

    def __init__(
        self,
        depth: int,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.embedding_dim = embedding_dim
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(
                embedding_dim=embedding_dim,
                num_heads=num_heads,
                mlp_dim=mlp_dim,
                activation=activation,
                attention_downsample_rate=attention_downsample_rate,
                skip_first_layer_pe=index == 0,
            )
            for index in range(depth)
        )
        self.final_attn_token_to_image = Attention(
            embedding_dim, num_heads, downsample_rate=attention_downsample_rate
        )
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(
        self,
        image_embedding: Tensor,
        image_pe: Tensor,
        point_embedding: Tensor,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Update the tokens and image maps of P objects by attention to each other.

        image_embedding  (P, C, h, w), or (1, C, h, w) if it is the same for every object
        image_pe         the same shape, or one that broadcasts to it
        point_embedding  (P, T, C)
        token_mask       (P, T) bool, False where a token is only padding; None: no padding
        returns          tokens (P, T, C) and image (P, h * w, C)
        """
        keys = image_embedding.flatten(2).transpose(1, 2)
        key_pe = image_pe.flatten(2).transpose(1, 2)
        queries = point_embedding
        for layer in self.layers:
            queries, keys = layer(
                queries=queries,
                keys=keys,
                query_pe=point_embedding,
                key_pe=key_pe,
                token_mask=token_mask,
            )
        attended = self.final_attn_token_to_image(
            q=queries + point_embedding, k=keys + key_pe, v=keys
        )
        return self.norm_final_attn(queries + attended), keys


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of tokens, tokens to image, an MLP on tokens, image to tokens."""

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int = 2048,
        activation: Callable[[], nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
        skip_first_layer_pe: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(embedding_dim, num_heads)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(
            embedding_dim, num_heads, downsample_rate=attention_downsample_rate
        )
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, mlp_dim, activation)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(
            embedding_dim, num_heads, downsample_rate=attention_downsample_rate
        )
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        query_pe: Tensor,
        key_pe: Tensor,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (P, T, C), image (P, h * w, C) and their positions -> both updated."""
        mask = None if token_mask is None else token_mask[:, None, None, :]
        if self.skip_first_layer_pe:
            queries = self.self_attn(q=queries, k=queries, v=queries, mask=mask)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q=q, k=q, v=queries, mask=mask)
        queries = self.norm1(queries)

        k = keys + key_pe
        queries = queries + self.cross_attn_token_to_image(q=queries + query_pe, k=k, v=keys)
        queries = self.norm2(queries)

        queries = self.norm3(queries + self.mlp(queries))

        keys = keys + self.cross_attn_image_to_token(
            q=k, k=queries + query_pe, v=queries, mask=mask
        )
        return queries, self.norm4(keys)


class Attention(nn.Module):
    """Multi-head attention with an inner width of embedding_dim / downsample_rate."""

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.internal_dim = embedding_dim // downsample_rate
        self.num_heads = num_heads
        if self.internal_dim % num_heads:
            raise InputError(f"num_heads {num_heads} must divide {self.internal_dim}")
        self.q_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.k_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.v_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.out_proj = nn.Linear(self.internal_dim, embedding_dim)

    def _separate_heads(self, x: Tensor, num_heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], num_heads, -1).transpose(1, 2)

    def _recombine_heads(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q (P, n, C), k and v (P, m, C) -> (P, n, C).

        mask is bool and broadcasts to (P, heads, n, m). An input with a batch of 1 is shared by all
        objects and projected once.
        """
        q = self._separate_heads(self.q_proj(q), self.num_heads)
        k = self._separate_heads(self.k_proj(k), self.num_heads)
        v = self._separate_heads(self.v_proj(v), self.num_heads)
        count = max(q.shape[0], k.shape[0])
        q, k = q.expand(count, -1, -1, -1), k.expand(count, -1, -1, -1)
        v = v.expand(count, -1, -1, -1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(self._recombine_heads(attended))
        return out
