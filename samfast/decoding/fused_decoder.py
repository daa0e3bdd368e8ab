"""FusedDecoder: the plain mask decoder's modules, for many objects of many images, in few passes
over the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samfast.decoding.decoder_operations import DecoderOperations, decoder_operations
from samfast.errors import UnsupportedRecipeError
from samfast.model.layers import LayerNorm2d
from samfast.model.mask_decoder import MaskDecoder
from samfast.model.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer

MOST_TOKENS = 64
"""Of an object, the decoder's own five included; with more, the images' update is the plain
model's."""


class FusedDecoder(nn.Module):
    """As `MaskDecoder`, with that module's own weights: those loaded or changed later are used.

    What is as large as an image's embedding is not projected. A projection of keys is moved to the
    few queries, one of values to the few answers:

        q . (W x + b) = (q W) . x + constant, which the softmax drops
        sum of p (W x + b) = W (sum of p x) + b, as the p of a query add up to 1

    So tokens look at the image's own rows, and the image's rows at tokens as wide as they are. Per
    layer an object's image is read twice and written once; objects of an image share it until the
    first layer has written theirs. The products are the same but for the order of sums.

    With more than MOST_TOKENS tokens an object, the image's attention to the tokens is the plain
    model's, with its projections and copies.

    Raises UnsupportedRecipeError for a decoder of another structure than SAM's.
    """

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        _check(decoder)
        self.decoder = decoder

    def forward(
        self,
        keys: Tensor,
        position: Tensor,
        source_of: Tensor,
        sparse: Tensor,
        token_mask: Tensor | None,
        multimask: bool,
        least_iou: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Masks (P, M, 4 * h, 4 * w) as logits and their predicted IoU (P, M), in the weights'
        dtype.

        keys        (Q, C, h, w): each source, an image's embedding plus a dense prompt's
        position    (1, C, h, w)
        source_of   (P,) int64: the source of each object
        sparse      (P, T, C)
        token_mask  (P, T) bool, False where a sparse token is only padding; None if none is
        multimask   M is 3, or else 1: the single-mask token's
        least_iou   the logits of an object none of whose masks has a higher predicted IoU are
                    zeros: a number, or one on the device; None: all are wanted

        All in the weights' dtype, on their device. P may be 0.
        """
        decoder, ops = self.decoder, decoder_operations()
        size = (keys.shape[-2], keys.shape[-1])
        chosen = range(1, decoder.num_mask_tokens) if multimask else range(1)
        count = sparse.shape[0]
        if count == 0:
            shape = (0, len(chosen))
            return keys.new_empty(*shape, 4 * size[0], 4 * size[1]), keys.new_empty(shape)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(count, -1, -1), sparse], dim=1)
        if token_mask is not None:
            token_mask = torch.cat([token_mask.new_ones(count, own.shape[0]), token_mask], dim=1)
        images = _Images(
            ops,
            keys.flatten(2).transpose(1, 2).contiguous(),
            position.flatten(2).transpose(1, 2).contiguous()[0],
            source_of,
        )
        tokens = _transform(decoder.transformer, images, tokens, token_mask)
        quality = decoder.iou_prediction_head(tokens[:, 0])[:, chosen.start : chosen.stop]
        good = None if least_iou is None else (quality.float() > least_iou).any(1)
        if good is None or keys.device.type != "cpu":
            # A GPU is not asked how many they are: each of its programs looks for itself.
            return self._masks(images, size, tokens, chosen, good), quality
        if good.all():
            return self._masks(images, size, tokens, chosen), quality
        masks = keys.new_zeros(*quality.shape, 4 * size[0], 4 * size[1])
        if good.any():
            masks[good] = self._masks(images.of(good), size, tokens[good], chosen)
        return masks, quality

    def _masks(
        self,
        images: _Images,
        size: tuple[int, int],
        tokens: Tensor,
        chosen: range,
        wanted: Tensor | None = None,
    ) -> Tensor:
        networks = [self.decoder.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in chosen]
        return images.upscaled(
            self.decoder.output_upscaling, size, torch.stack(networks, dim=1), wanted
        )


class _Images:
    """The images that objects look at: rows (Q, N, C), their positions (N, C), and the image of
    each object (P,).
    """

    def __init__(
        self, ops: DecoderOperations, rows: Tensor, position: Tensor, source_of: Tensor
    ) -> None:
        self.ops, self.rows, self.position, self.source_of = ops, rows, position, source_of
        self.own = False  # whether each object has rows of its own, which nobody else reads

    def of(self, chosen: Tensor) -> _Images:
        """Those of some objects, (P,) bool."""
        source_of = self.source_of[chosen]
        found = _Images(self.ops, self.rows[source_of], self.position, source_of)
        found.source_of, found.own = torch.arange(len(source_of), device=source_of.device), True
        return found

    def seen_by(self, tokens: Tensor, attention: Attention) -> Tensor:
        """What tokens (P, T, C) are told by attention to their images: (P, T, C)."""
        heads, wide = attention.num_heads, attention.internal_dim // attention.num_heads
        queries = _times(
            _of_heads(attention.q_proj(tokens), heads), _per_head(attention.k_proj.weight, heads)
        )
        queries = queries.view(heads, *tokens.shape)
        answers = self.ops.from_image(queries, self.rows, self.position, self.source_of, wide**-0.5)
        values = _per_head(attention.v_proj.weight, heads).transpose(1, 2)
        bias = attention.v_proj.bias.view(heads, 1, wide)
        told = torch.baddbmm(bias, answers.flatten(1, 2), values).transpose(0, 1)
        out: Tensor = attention.out_proj(told.reshape(*tokens.shape[:2], -1))
        return out

    def look_at(
        self,
        tokens: Tensor,
        position: Tensor,
        token_mask: Tensor | None,
        attention: Attention,
        norm: nn.LayerNorm,
    ) -> None:
        """Add to each image what attention to tokens (P, T, C) tells it, and normalise; each object
        has its own then.

        position  (P, T, C), what is added to tokens as keys
        """
        count, length, _ = tokens.shape
        if length > MOST_TOKENS:
            self._look_plainly(tokens, position, token_mask, attention, norm)
        else:
            heads, wide = attention.num_heads, attention.internal_dim // attention.num_heads
            scale = wide**-0.5
            keys = _of_heads(attention.k_proj(tokens + position), heads)
            mixed = _times(keys, _per_head(attention.q_proj.weight, heads))
            shift = (keys.float() * attention.q_proj.bias.float().view(heads, 1, wide)).sum(
                -1
            ) * scale
            shift = shift.reshape(heads, count, length).contiguous()
            if token_mask is not None:
                shift = shift.masked_fill(~token_mask, float("-inf"))
            values = _times(
                _of_heads(attention.v_proj(tokens), heads),
                attention.out_proj.weight.T.view(heads, wide, -1),
            )
            given = (
                self.position,
                self.source_of,
                mixed.view(heads, count, length, -1),
                shift,
                values.view(heads, count, length, -1),
                attention.out_proj.bias,
                norm.weight,
                norm.bias,
                norm.eps,
                scale,
            )
            if self.own:
                self.ops.to_image_(self.rows, *given)
            else:
                self.rows, self.own = self.ops.to_image(self.rows, *given), True
        self.source_of = torch.arange(count, device=tokens.device)

    def _look_plainly(
        self,
        tokens: Tensor,
        position: Tensor,
        token_mask: Tensor | None,
        attention: Attention,
        norm: nn.LayerNorm,
    ) -> None:
        rows = self.rows[self.source_of]
        mask = None if token_mask is None else token_mask[:, None, None, :]
        told = attention(q=rows + self.position, k=tokens + position, v=tokens, mask=mask)
        self.rows, self.own = norm(rows + told), True

    def upscaled(
        self, layers: Any, size: tuple[int, int], kernels: Tensor, wanted: Tensor | None
    ) -> Tensor:
        """The images through the decoder's `output_upscaling`, times kernels (P, M, C / 8): (P, M,
        4 * h, 4 * w).

        wanted  (P,) bool, zeros for others
        """
        wide, norm, _, keep_dtype, _ = layers
        return self.ops.upscaling(
            self.rows,
            self.source_of,
            *size,
            wide.weight.permute(2, 3, 0, 1).flatten(0, 1).contiguous(),
            wide.bias,
            norm.weight,
            norm.bias,
            norm.eps,
            keep_dtype.weight.permute(0, 2, 3, 1).flatten(1).contiguous(),
            keep_dtype.bias,
            kernels,
            wanted,
        )


def _transform(
    transformer: Any, images: _Images, tokens: Tensor, token_mask: Tensor | None
) -> Tensor:
    """As `TwoWayTransformer`: the tokens (P, T, C) afterwards; the images change in place of its
    second answer.
    """
    queries, mask = tokens, None if token_mask is None else token_mask[:, None, None, :]
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries, mask=mask)
        else:
            q = queries + tokens
            queries = queries + layer.self_attn(q=q, k=q, v=queries, mask=mask)
        queries = layer.norm1(queries)
        queries = layer.norm2(
            queries + images.seen_by(queries + tokens, layer.cross_attn_token_to_image)
        )
        queries = layer.norm3(queries + layer.mlp(queries))
        images.look_at(queries, tokens, token_mask, layer.cross_attn_image_to_token, layer.norm4)
    told = images.seen_by(queries + tokens, transformer.final_attn_token_to_image)
    out: Tensor = transformer.norm_final_attn(queries + told)
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
            "linear projections, two "
            "transposed convolutions with LayerNorm2d and GELU by erf, and a width that is a power "
            "of two from 16; "
            "this decoder has another, use the decoder as it is"
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
    wide: nn.Module, norm: nn.Module, act_1: nn.Module, keep_dtype: nn.Module, act_2: nn.Module
) -> bool:
    return (
        _all((wide, keep_dtype), nn.ConvTranspose2d)
        and all(_doubles(layer) for layer in (wide, keep_dtype))
        and type(norm) is LayerNorm2d
        and _all((act_1, act_2), nn.GELU)
        and all(act.approximate == "none" for act in (act_1, act_2))
    )


def _doubles(layer: Any) -> bool:
    """Whether a transposed convolution makes four pixels of each, of nothing else, and adds a
    bias.
    """
    pairs = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation)
    usual = ((2, 2), (2, 2), (0, 0), (0, 0), (1, 1))
    return pairs == usual and layer.groups == 1 and layer.bias is not None


def _all(modules: Sequence[Any], kind: type) -> bool:
    return all(type(module) is kind for module in modules)
