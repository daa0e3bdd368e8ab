"""A recipe applied to a model: every step, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samfast import attention
from samfast.attention import active_configs
from samfast.decoding import decoder_programs
from samfast.decoding.decoder import Decoder
from samfast.decoding.looped_decoder import LoopedDecoder
from samfast.decoding.nested_decoder import NestedDecoder
from samfast.decoding.packed_decoder import PackedDecoder
from samfast.device import cuda_programs
from samfast.device.artifacts import kernel_configs
from samfast.device.machine import device_name
from samfast.encoding import encoder_programs
from samfast.encoding.compiled_blocks import CompiledEncoder, code_key, register_operations
from samfast.encoding.encoder import Encoder
from samfast.encoding.fused_encoder import FusedEncoder
from samfast.encoding.graphed_encoder import GraphedEncoder
from samfast.encoding.onednn_encoder import OneDnnEncoder
from samfast.encoding.openvino_encoder import OpenVinoEncoder
from samfast.encoding.static_batches import StaticBatches, static_sizes
from samfast.errors import UnsupportedRecipeError
from samfast.linear.quantize_layers import quantize_layers
from samfast.linear.sparsify_layers import sparsify_layers
from samfast.masks.kernels import hopper_tiles
from samfast.model.image_encoder import Attention, ImageEncoderViT
from samfast.model.sam import Sam
from samfast.recipes import precision
from samfast.recipes.device_support import refusal
from samfast.recipes.recipe import Recipe


@dataclass(frozen=True)
class Runtime:
    """A model's encoder and decoder as a recipe runs them: the result of `apply`.

    encode      normalised pixels (B, 3, S, S) float32 on the device -> embeddings
                (B, 256, S / 16, S / 16)
    decode      embeddings and prompts -> low-resolution logits and predicted IoU
    recipe      that was applied
    device      of the model
    batch_size  images encoded at a time
    """

    encode: Encoder
    decode: Decoder
    recipe: Recipe
    device: torch.device
    batch_size: int


def apply(
    sam: Sam, recipe: Recipe, device: torch.device, *, batch_size: int = 1, name: str = "a SAM"
) -> Runtime:
    """Change the model in place as the recipe says, and build its encoder and decoder.

    batch_size  images encoded at a time
    name        of the model, for the list of compiled code in the user's cache

    Raises UnsupportedRecipeError when the device cannot run the recipe, or the model's layers do
    not have the sizes or weights that it needs.

    >>> runtime = apply(sam, RECIPES["bf16_sdpa"], torch.device("cuda"), batch_size=8)
    >>> embeddings = runtime.encode(pixels)
    """
    reason = refusal(recipe, device)
    if reason is not None:
        raise UnsupportedRecipeError(f"recipe ({recipe}) on {device}: {reason}")
    precision.convert(sam, recipe.dtype)
    sam.to(device)
    use_attention(sam, recipe.attention)
    if recipe.sparsify is not None:
        sparsify_layers(sam, recipe.layer_formats)
    if recipe.quantize is not None:
        quantize_layers(sam, recipe.layer_formats)
    return build_runtime(sam, recipe, device, batch_size=batch_size, name=name)


def build_runtime(
    sam: Sam, recipe: Recipe, device: torch.device, *, batch_size: int = 1, name: str = "a SAM"
) -> Runtime:
    """The encoder and decoder of a model to which the recipe has been applied; the model stays as
    it is. Nothing is compiled or recorded before the first call.
    """
    if device.type == "cuda":
        cuda_programs.load_ahead(hopper_tiles.programs(recipe.dtype), device)
    encode = _encoder(sam, recipe, device, batch_size, name)
    return Runtime(encode, _decoder(sam, recipe, device), recipe, device, batch_size)


def _encoder(sam: Sam, recipe: Recipe, device: torch.device, batch_size: int, name: str) -> Encoder:
    plain = sam.image_encoder
    compiled = graph = None
    if recipe.attention == "triton" and device.type == "cuda":
        kernel_configs.load(device_name(device), active_configs.use)
        cuda_programs.load_ahead(encoder_programs.programs(plain, recipe.fuse), device)
    module: nn.Module = plain
    if recipe.products == "onednn":
        module = OneDnnEncoder(plain)
    elif recipe.products == "openvino":
        module = OpenVinoEncoder(plain)
    elif recipe.fuse:
        module = FusedEncoder(plain)
    encode: Callable[[Tensor], Tensor] = module
    if recipe.compile is not None:
        register_operations(triton=recipe.attention == "triton", fuse=recipe.fuse)
        key = None  # the code of another class of encoder is not kept between processes
        if isinstance(plain, ImageEncoderViT):
            key = code_key(plain, name, recipe.encoder_settings, batch_size, device)
        encode = compiled = CompiledEncoder(module, recipe.compile, key)
    if recipe.graphed:
        graph = GraphedEncoder(
            encode, plain, batch_size, recipe.dtype, compiled=compiled is not None
        )
        encode = graph
    sizes = static_sizes(batch_size, compiled=compiled is not None, graphed=graph is not None)
    if sizes:
        encode = StaticBatches(encode, sizes)
    how = module.describe() if isinstance(module, OpenVinoEncoder) else "as it is written"
    return Encoder(encode, device, sizes, compiled, graph, how)


def _decoder(sam: Sam, recipe: Recipe, device: torch.device) -> Decoder:
    if recipe.prompts == "looped":
        return LoopedDecoder(sam)
    if recipe.prompts == "nested":
        return NestedDecoder(sam)
    if recipe.fuse and device.type == "cuda":
        cuda_programs.load_ahead(decoder_programs.programs(recipe.dtype), device)
    return PackedDecoder(
        sam,
        fuse=recipe.fuse,
        graph=recipe.graphed and device.type == "cuda",
        onednn=recipe.products != "torch",
    )


def use_attention(sam: Sam, name: str) -> None:
    """Give every block of the image encoder the attention of that name; RecipeError for an unknown
    name.
    """
    attend = attention.get(name)
    for module in sam.image_encoder.modules():
        if isinstance(module, Attention):
            module.attend = attend
