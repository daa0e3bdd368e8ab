"""FusedDecoder: the plain mask decoder's modules in few passes over the image embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samfast.decoding import decoder_operations
from samfast.errors import UnsupportedRecipeError
from samfast.model.layers import LayerNorm2d
from samfast.model.mask_decoder import MaskDecoder
from samfast.model.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer


class FusedDecoder(nn.Module):
    """As `MaskDecoder`, with the weights of that module, as they are when it is called.

    What is as large as an image's embedding is not projected. A projection of keys is moved to the
    few queries, one of values to the few answers:

        q . (W x + b) = (q W) . x + constant, which the softmax drops
        sum of p (W x + b) = W (sum of p x) + b, as the p of a query add up to 1

    So tokens attend to the unprojected rows of the image, and these attend to tokens of the same
    width. Each layer reads an object's image twice and writes it once; objects of an image share it
    until the first layer has written theirs. The products are the same but for the order of sums.

    With more than `MAX_TOKENS` tokens per object, the decoder's five included, image-to-token
    attention is the plain model's, with its projections and copies.

    operations  a module with the functions of `decoder_operations`

    Raises UnsupportedRecipeError for a decoder of another structure than SAM's.
    """

    def __init__(self, decoder: MaskDecoder, operations: Any = decoder_operations) -> None:
        super().__init__()
        _check(decoder)
        self.decoder, self._operations = decoder, operations

    def forward(
        self,
        keys: Tensor,
        position: Tensor,
        source_of: Tensor,
        sparse: Tensor,
        token_mask: Tensor | None,
        multimask: bool,
        min_iou: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (P, M, 4 * h, 4 * w) and their predicted IoU (P, M), in the weights' dtype.

        keys        (Q, C, h, w): each source, an image's embedding plus a dense prompt's
        position    (1, C, h, w)
        source_of   (P,) int64: the source of each object
        sparse      (P, T, C)
        token_mask  (P, T) bool, False where a sparse token is only padding; None if none is
        multimask   M is 3, or else 1: the single-mask token's
        min_iou   an object has zeros as logits if no mask of it has a higher predicted IoU: a
                    number, or one on the device; None: all logits are computed

        All in the weights' dtype, on their device. P may be 0.
        """
        decoder = self.decoder
        size = (keys.shape[-2], keys.shape[-1])
        chosen = range(1, decoder.num_mask_tokens) if multimask else range(1)
        count = sparse.shape[0]
        if count == 0:
            shape = (0, len(chosen))
            return keys.new_empty(*shape, 4 * size[0], 4 * size[1]), keys.new_empty(shape)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(count, -1, -1), sparse], dim=1)
        if token_mask is not None:
            always = token_mask.new_ones(count, len(output_tokens))
            token_mask = torch.cat([always, token_mask], dim=1)
        rows = keys.flatten(2).transpose(1, 2).contiguous()
        positions = position.flatten(2).transpose(1, 2).contiguous()[0]
        images = _Images(self._operations, rows, positions, source_of)
        tokens = _transform(decoder.transformer, images, tokens, token_mask)
        iou = decoder.iou_prediction_head(tokens[:, 0])[:, chosen.start : chosen.stop]
        wanted = None if min_iou is None else (iou.float() > min_iou).any(1)
        if wanted is None or keys.device.type != "cpu":
            # No synchronisation on a GPU: each program of the kernel reads whether it has work.
            return self._masks(images, size, tokens, chosen, wanted), iou
        if wanted.all():
            return self._masks(images, size, tokens, chosen), iou
        masks = keys.new_zeros(*iou.shape, 4 * size[0], 4 * size[1])
        if wanted.any():
            masks[wanted] = self._masks(images.select(wanted), size, tokens[wanted], chosen)
        return masks, iou

    def _masks(
        self,
        images: _Images,
        size: tuple[int, int],
        tokens: Tensor,
        chosen: range,
        wanted: Tensor | None = None,
    ) -> Tensor:
        networks = [self.decoder.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in chosen]
        hyper_in = torch.stack(networks, dim=1)
        return images.upscale(self.decoder.output_upscaling, size, hyper_in, wanted)


class _Images:
    """The images of some objects.

    operations  the functions of `decoder_operations`, by the module that has them
    rows        (Q, N, C)
    position    (N, C): of the rows, added wherever they are keys or queries
    source_of   (P,): the image of each object
    per_object  whether each object has an image to itself, which may be overwritten
    """

    def __init__(
        self,
        operations: Any,
        rows: Tensor,
        position: Tensor,
        source_of: Tensor,
        per_object: bool = False,
    ) -> None:
        self.operations = operations
        self.rows, self.position, self.source_of = rows, position, source_of
        self.per_object = per_object

    def select(self, chosen: Tensor) -> _Images:
        """The images of the chosen objects, (P,) bool."""
        rows = self.rows[self.source_of[chosen]]
        return _Images(
            self.operations, rows, self.position, torch.arange(len(rows), device=rows.device), True
        )

    def token_to_token(
        self, tokens: Tensor, values: Tensor, token_mask: Tensor | None, attention: Attention
    ) -> Tensor:
        """Attention of an object's tokens to each other, all (P, T, C): (P, T, C)."""
        projected = attention.q_proj(tokens), attention.k_proj(tokens), attention.v_proj(values)
        merged = self.operations.token_attention(*projected, token_mask, attention.num_heads)
        out: Tensor = attention.out_proj(merged)
        return out

    def token_to_image(self, tokens: Tensor, attention: Attention) -> Tensor:
        """Attention of tokens (P, T, C) to their images: (P, T, C)."""
        heads, wide = attention.num_heads, attention.internal_dim // attention.num_heads
        queries = _times(
            _of_heads(attention.q_proj(tokens), heads), _per_head(attention.k_proj.weight, heads)
        )
        answers = self.operations.token_to_image_attention(
            queries.view(heads, *tokens.shape),
            self.rows,
            self.position,
            self.source_of,
            wide**-0.5,
        )
        values = _per_head(attention.v_proj.weight, heads).transpose(1, 2)
        bias = attention.v_proj.bias.view(heads, 1, wide)
        merged = torch.baddbmm(bias, answers.flatten(1, 2), values).transpose(0, 1)
        out: Tensor = attention.out_proj(merged.reshape(*tokens.shape[:2], -1))
        return out

    def image_to_token(
        self,
        tokens: Tensor,
        position: Tensor,
        token_mask: Tensor | None,
        attention: Attention,
        norm: nn.LayerNorm,
    ) -> None:
        """Add to each object's image its attention to the object's tokens (P, T, C), and normalise.

        position  (P, T, C), added to tokens as keys
        """
        count, length, _ = tokens.shape
        if length > decoder_operations.MAX_TOKENS:
            mask = None if token_mask is None else token_mask[:, None, None, :]
            rows = self.rows[self.source_of]
            added = attention(q=rows + self.position, k=tokens + position, v=tokens, mask=mask)
            self.rows = norm(rows + added)
        else:
            heads, wide = attention.num_heads, attention.internal_dim // attention.num_heads
            scale = wide**-0.5
            keys = _of_heads(attention.k_proj(tokens + position), heads)
            token_keys = _times(keys, _per_head(attention.q_proj.weight, heads))
            q_bias = attention.q_proj.bias.float().view(heads, 1, wide)
            score_bias = (keys.float() * q_bias).sum(-1) * scale
            score_bias = score_bias.reshape(heads, count, length).contiguous()
            if token_mask is not None:
                score_bias = score_bias.masked_fill(~token_mask, float("-inf"))
            token_values = _times(
                _of_heads(attention.v_proj(tokens), heads),
                attention.out_proj.weight.T.view(heads, wide, -1),
            )
            inputs = (
                self.rows,
                self.position,
                self.source_of,
                token_keys.view(heads, count, length, -1),
                score_bias,
                token_values.view(heads, count, length, -1),
                attention.out_proj.bias,
                norm.weight,
                norm.bias,
                norm.eps,
                scale,
            )
            if self.per_object:
                self.operations.image_to_token_attention_(*inputs)
            else:
                self.rows = self.operations.image_to_token_attention(*inputs)
        self.per_object = True
        self.source_of = torch.arange(count, device=tokens.device)

    def upscale(
        self, layers: Any, size: tuple[int, int], hyper_in: Tensor, wanted: Tensor | None
    ) -> Tensor:
        """The decoder's `output_upscaling`, times hyper_in (P, M, C / 8): (P, M, 4 * h, 4 * w)."""
        wide, norm, _, narrow, _ = layers
        logits: Tensor = self.operations.upscaling(
            self.rows,
            self.source_of,
            *size,
            wide.weight.permute(2, 3, 0, 1).flatten(0, 1).contiguous(),
            wide.bias,
            norm.weight,
            norm.bias,
            norm.eps,
            narrow.weight.permute(0, 2, 3, 1).flatten(1).contiguous(),
            narrow.bias,
            hyper_in,
            wanted,
        )
        return logits


def _transform(
    transformer: Any, images: _Images, tokens: Tensor, token_mask: Tensor | None
) -> Tensor:
    """As `TwoWayTransformer`: the tokens (P, T, C) afterwards; the images are changed in place."""
    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = images.token_to_token(queries, queries, token_mask, layer.self_attn)
        else:
            added = images.token_to_token(queries + tokens, queries, token_mask, layer.self_attn)
            queries = queries + added
        queries = layer.norm1(queries)
        added = images.token_to_image(queries + tokens, layer.cross_attn_token_to_image)
        queries = layer.norm2(queries + added)
        queries = layer.norm3(queries + layer.mlp(queries))
        attention, norm = layer.cross_attn_image_to_token, layer.norm4
        images.image_to_token(queries, tokens, token_mask, attention, norm)
    added = images.token_to_image(queries + tokens, transformer.final_attn_token_to_image)
    out: Tensor = transformer.norm_final_attn(queries + added)
    return out


def _of_heads(x: Tensor, heads: int) -> Tensor:
    """(P, T, heads * d) -> (heads, P * T, d), a view."""
    return x.flatten(0, 1).view(-1, heads, x.shape[-1] // heads).transpose(0, 1)


def _per_head(weight: Tensor, heads: int) -> Tensor:
    """A projection's weight (heads * d, C) -> (heads, d, C), a view."""
    return weight.view(heads, -1, weight.shape[1])


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """(heads, n, d) and (heads, d, C) -> (heads, n, C), contiguous."""
    return torch.bmm(x, weight).contiguous()


def _check(decoder: MaskDecoder) -> None:
    channels, upscaling = decoder.transformer_dim, decoder.output_upscaling
    known = (
        channels >= 16
        and channels & (channels - 1) == 0
        and _transformer_known(decoder.transformer)
        and len(upscaling) == 5
        and _upscaling_known(*upscaling)
    )
    if not known:
        raise UnsupportedRecipeError(
            "a fused decoder needs SAM's own structure: TwoWayTransformer with LayerNorm and "
            "linear projections, two transposed convolutions with LayerNorm2d and GELU by erf, and "
            "a width that is a power of two from 16; this decoder has another, use the decoder as "
            "it is"
        )


def _transformer_known(transformer: Any) -> bool:
    if type(transformer) is not TwoWayTransformer:
        return False
    attentions: list[Any] = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        if type(layer) is not TwoWayAttentionBlock or type(layer.norm4) is not nn.LayerNorm:
            return False
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    if not _all(attentions, Attention):
        return False
    projections = [p for a in attentions for p in (a.q_proj, a.k_proj, a.v_proj, a.out_proj)]
    return _all(projections, nn.Linear) and all(p.bias is not None for p in projections)


def _upscaling_known(
    wide: nn.Module, norm: nn.Module, act_1: nn.Module, narrow: nn.Module, act_2: nn.Module
) -> bool:
    return (
        _all((wide, narrow), nn.ConvTranspose2d)
        and all(_doubles(layer) for layer in (wide, narrow))
        and type(norm) is LayerNorm2d
        and _all((act_1, act_2), nn.GELU)
        and all(act.approximate == "none" for act in (act_1, act_2))
    )


def _doubles(layer: Any) -> bool:
    """Whether a transposed convolution makes four pixels of one, without overlap, with a bias."""
    pairs = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation)
    usual = ((2, 2), (2, 2), (0, 0), (0, 0), (1, 1))
    return pairs == usual and layer.groups == 1 and layer.bias is not None


def _all(modules: Sequence[Any], kind: type) -> bool:
    return all(type(module) is kind for module in modules)
