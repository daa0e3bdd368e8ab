"""The image encoder as a graph of OpenVINO, made for what its CPU plugin fuses.

The plugin runs scores, position terms, softmax and the product with the values as one kernel, in
tiles that stay in the cache. GELU and biases become part of the products. The graph multiplies real
tokens only: q, k and v of padding tokens are the bias of qkv, as constants. The scale of the scores
is part of the weights of q.

Of an int8 layer the rows are quantized one by one, as `samfast.linear` does: a row divided by its
largest magnitude lies between -1 and 1, which is all that OpenVINO has to know to quantize it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samfast.attention.relpos import relative, resize_table
from samfast.attention.windowing import padded_grid
from samfast.device.openvino_compiler import need_openvino
from samfast.errors import UnsupportedRecipeError
from samfast.linear.int8 import Int8Linear
from samfast.linear.quantization import SMALLEST_SCALE
from samfast.model.image_encoder import ImageEncoderViT

INT8_LEVELS = 255
"""Of an activation, from -127 to 127."""


def encoder_graph(encoder: ImageEncoderViT, dtype: torch.dtype) -> tuple[Any, list[Tensor]]:
    """An `openvino.Model` of the encoder for one image: pixels (1, 3, S, S) float32 -> rows of
    embeddings (tokens, C) float32; and the tensors whose memory are its constants.

    dtype  of weights and activations, torch.float32 or torch.bfloat16

    Weights are not copied, so those tensors must live as long as the model and what is compiled
    from it.

    Raises UnsupportedRecipeError for layers of another kind than a recipe for OpenVINO makes.
    """
    graph = _Graph(encoder, dtype)
    return graph.model(), graph.memory


class _Graph:
    """Builds the nodes of one encoder."""

    def __init__(self, encoder: ImageEncoderViT, dtype: torch.dtype) -> None:
        ov = need_openvino("products='openvino'")
        # A fixed version of the operations: a newer OpenVINO gets the same graph.
        ops: Any = import_module("openvino.opset13")
        self.ov, self.ops = ov, ops
        self.encoder: Any = encoder
        self.dtype = dtype
        self.memory: list[Tensor] = []
        self.type = {torch.float32: ov.Type.f32, torch.bfloat16: ov.Type.bf16}[dtype]
        self.patch = encoder.patch_embed.proj.kernel_size[0]
        self.grid = encoder.img_size // self.patch

    def model(self) -> Any:
        """The whole encoder."""
        ops, encoder, grid = self.ops, self.encoder, self.grid
        tokens, size = grid * grid, encoder.img_size
        pixels = ops.parameter([1, 3, size, size], self.ov.Type.f32)
        proj = encoder.patch_embed.proj
        x = self._convolution(self._cast(pixels), proj.weight, self.patch, 0)
        x = self._permute(self._reshape(x, proj.out_channels, tokens), 1, 0)
        if proj.bias is not None:
            x = ops.add(x, self._constant(proj.bias))
        if encoder.pos_embed is not None:
            x = ops.add(x, self._constant(encoder.pos_embed.flatten(0, 2)))
        for block in encoder.blocks:
            rows = self._norm(x, block.norm1)
            x = ops.add(x, self._attention(rows, block.attn, block.window_size))
            hidden = ops.gelu(self._linear(self._norm(x, block.norm2), block.mlp.lin1), "erf")
            x = ops.add(x, self._linear(hidden, block.mlp.lin2))
        conv_1, norm_1, conv_2, norm_2 = encoder.neck
        x = self._norm(self._product(x, conv_1.weight.flatten(1)), norm_1)
        image = self._permute(self._reshape(x, 1, grid, grid, conv_1.out_channels), 0, 3, 1, 2)
        image = self._convolution(image, conv_2.weight, 1, conv_2.padding[0])
        x = self._reshape(self._permute(image, 0, 2, 3, 1), tokens, conv_2.out_channels)
        rows = ops.convert(self._norm(x, norm_2), self.ov.Type.f32)
        return self.ov.Model([rows], [pixels], "image_encoder")

    def _attention(self, x: Any, attn: Any, window: int) -> Any:
        """Tokens (H * W, C) -> (H * W, C), with qkv and proj."""
        heads, grid = attn.num_heads, self.grid
        channels = attn.proj.in_features
        dim = channels // heads
        qkv = self._linear(x, attn.qkv, scaled=channels)
        side = window or grid
        items = 1 if not window else (padded_grid(grid, grid, window)[0] // window) ** 2
        if window:
            qkv = self._windows(qkv, attn, window)
        else:
            qkv = self._permute(self._reshape(qkv, grid * grid, 3 * heads, dim), 1, 0, 2)
        # Heads and windows are one axis: with two, the encoder of ViT-B takes a twentieth longer.
        parts = self._split(self._reshape(qkv, 3, heads * items, side * side, dim), 3)
        q, k, v = (self._reshape(part, heads * items, side * side, dim) for part in parts)
        scores = self.ops.matmul(q, k, False, True)
        if attn.rel_pos_h is not None:
            scores = self.ops.add(scores, self._positions(q, attn, side))
        out = self.ops.matmul(self.ops.softmax(scores, -1), v, False, False)
        if window:
            rows = self._unwindow(out, heads, window, dim)
        else:
            rows = self._reshape(self._permute(out, 1, 0, 2), grid * grid, channels)
        return self._linear(rows, attn.proj)

    def _positions(self, q: Any, attn: Any, side: int) -> Any:
        """The position terms of scaled queries (items, side * side, d): (items, side ** 2, side **
        2).
        """
        ops = self.ops
        items, tokens, dim = (int(length) for length in q.get_output_shape(0))
        rows = self._reshape(q, items, side, side, dim)
        columns = self._permute(rows, 0, 2, 1, 3)
        table_h, table_w = (
            # The queries have the scale of the scores, the position terms do not.
            relative(resize_table(table.detach().float(), side), side)[None] * dim**0.5
            for table in (attn.rel_pos_h, attn.rel_pos_w)
        )
        rel_h = ops.matmul(rows, self._constant(table_h), False, True)
        rel_w = self._permute(ops.matmul(columns, self._constant(table_w), False, True), 0, 2, 1, 3)
        bias = ops.add(
            self._reshape(rel_h, items, tokens, side, 1),
            self._reshape(rel_w, items, tokens, 1, side),
        )
        return self._reshape(bias, items, tokens, side * side)

    def _windows(self, qkv: Any, attn: Any, window: int) -> Any:
        """q, k, v of the real tokens, (H * W, 3 * C) -> (3 * heads, windows, ..., d)."""
        ops, grid = self.ops, self.grid
        padded = padded_grid(grid, grid, window)[0]
        width = int(qkv.get_output_shape(0)[1])
        rows = self._reshape(qkv, grid, grid, width)
        if padded > grid:
            bias = attn.qkv.bias
            token = torch.zeros(width) if bias is None else self._scaled(bias, width // 3)
            right = self._constant(token.expand(grid, padded - grid, width))
            bottom = self._constant(token.expand(padded - grid, padded, width))
            rows = ops.concat([ops.concat([rows, right], 1), bottom], 0)
        count, heads = padded // window, 3 * attn.num_heads
        split = self._reshape(rows, count, window, count, window, heads, width // heads)
        return self._permute(split, 4, 0, 2, 1, 3, 5)

    def _unwindow(self, out: Any, heads: int, window: int, dim: int) -> Any:
        """(heads * windows, window ** 2, d) -> tokens (H * W, heads * d)."""
        grid = self.grid
        padded = padded_grid(grid, grid, window)[0]
        count = padded // window
        split = self._reshape(out, heads, count, count, window, window, dim)
        rows = self._reshape(self._permute(split, 1, 3, 2, 4, 0, 5), padded, padded, heads * dim)
        if padded > grid:
            rows = self.ops.slice(
                rows, *map(self._integers, ([0, 0], [grid, grid], [1, 1], [0, 1]))
            )
        return self._reshape(rows, grid * grid, heads * dim)

    def _linear(self, x: Any, layer: nn.Module, scaled: int = 0) -> Any:
        """A layer on rows x (M, K) -> (M, N); its first `scaled` outputs, those of q, take the
        scale of the scores.
        """
        ops = self.ops
        bias = getattr(layer, "bias", None)
        if type(layer) is Int8Linear:
            scales = self._scaled(layer.weight_scale, scaled)
            x = self._int8_product(x, layer.weight, scales)
        elif type(layer) is nn.Linear:
            x = self._product(x, self._scaled(layer.weight.detach(), scaled))
        else:
            raise UnsupportedRecipeError(
                "products='openvino' multiplies nn.Linear and int8 layers, and this is a "
                f"{type(layer).__name__}; take products='torch'"
            )
        return x if bias is None else ops.add(x, self._constant(self._scaled(bias, scaled)))

    def _scaled(self, values: Tensor, count: int) -> Tensor:
        """The first `count` rows times the scale of the scores."""
        if not count:
            return values
        heads: int = self.encoder.blocks[0].attn.num_heads
        scale = (count // heads) ** -0.5
        return torch.cat([values[:count].detach() * scale, values[count:].detach()])

    def _product(self, x: Any, weight: Tensor) -> Any:
        """Rows x (M, K) times a weight (N, K) transposed."""
        return self.ops.matmul(x, self._constant(weight), False, True)

    def _int8_product(self, x: Any, weight: Tensor, scales: Tensor) -> Any:
        """Rows x (M, K), quantized one by one, times an int8 weight (N, K) with N scales."""
        ops, float32 = self.ops, self.ov.Type.f32
        x = ops.convert(x, float32) if self.type != float32 else x
        largest = ops.reduce_max(ops.absolute(x), self._integers([-1]), True)
        largest = ops.maximum(largest, ops.constant(np.float32(SMALLEST_SCALE)))
        low, high = ops.constant(np.float32(-1)), ops.constant(np.float32(1))
        rows = ops.multiply(x, ops.divide(high, largest))
        rows = ops.fake_quantize(rows, low, high, low, high, INT8_LEVELS)
        values = ops.convert(self._shared(weight, self.ov.Type.i8), float32)
        values = ops.multiply(values, self._shared(scales.float()[:, None], float32))
        return self._cast(ops.multiply(ops.matmul(rows, values, False, True), largest))

    def _norm(self, x: Any, layer: Any) -> Any:
        """A layer norm of rows (M, C)."""
        rows = self.ops.mvn(x, self._integers([-1]), True, float(layer.eps), "inside_sqrt")
        if layer.weight is not None:
            rows = self.ops.multiply(rows, self._constant(layer.weight))
        return rows if layer.bias is None else self.ops.add(rows, self._constant(layer.bias))

    def _convolution(self, x: Any, weight: Tensor, stride: int, padding: int) -> Any:
        steps, edges = [stride, stride], [padding, padding]
        return self.ops.convolution(x, self._constant(weight), steps, edges, edges, [1, 1])

    def _constant(self, values: Tensor) -> Any:
        """A tensor in the graph's dtype, not copied where it has that already."""
        return self._shared(values.detach().to(self.dtype), self.type)

    def _shared(self, values: Tensor, kind: Any) -> Any:
        """A constant that is the tensor's memory."""
        values = values.detach().contiguous()
        self.memory.append(values)
        # NumPy has no bfloat16.
        array = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
        shape = self.ov.Shape(list(values.shape))
        return self.ops.constant(self.ov.Tensor(array, shape, kind), shared_memory=True)

    def _cast(self, x: Any) -> Any:
        return x if self.type == self.ov.Type.f32 else self.ops.convert(x, self.type)

    def _integers(self, values: list[int]) -> Any:
        return self.ops.constant(np.array(values, np.int64))

    def _reshape(self, x: Any, *shape: int) -> Any:
        return self.ops.reshape(x, self._integers(list(shape)), False)

    def _permute(self, x: Any, *axes: int) -> Any:
        return self.ops.transpose(x, self._integers(list(axes)))

    def _split(self, x: Any, count: int) -> Any:
        return self.ops.split(x, self.ops.constant(np.int64(0)), count).outputs()
