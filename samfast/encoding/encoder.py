"""The image encoder as a recipe runs it: fused, compiled, in static sizes, as a CUDA graph, or
plain.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from samfast.attention.active_configs import use
from samfast.device.artifacts import kernel_configs
from samfast.device.cuda_graphs import Encode, Graphed
from samfast.device.inference_modes import inference_modes
from samfast.device.machine import device_name
from samfast.encoding.compiled_blocks import Compiled, key
from samfast.encoding.static_batches import Padded, static_sizes
from samfast.model.image_encoder import ImageEncoderViT
from samfast.model.sam import Sam
from samfast.recipes.recipe import Recipe


class Encoder:
    """What the engine calls with pixels.

    sizes     the batch sizes that are run, ascending; none: any
    compiled  the compiled encoder, or None
    graph     the CUDA graphs, or None

    The model itself stays plain: `sam.image_encoder` may be called, saved and written to as ever.
    """

    def __init__(
        self,
        encode: Encode,
        device: torch.device,
        sizes: tuple[int, ...] = (),
        compiled: Compiled | None = None,
        graph: Graphed | None = None,
    ) -> None:
        self._encode = encode
        self._device = device
        self.sizes = sizes
        self.compiled = compiled
        self.graph = graph

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) float32 on the device -> (B, 256, S / 16, S / 16), the caller's to
        keep.

        Without gradients, and the same whatever modes of torch the caller is in: each would be
        another graph.
        """
        with inference_modes(self._device):
            if pixels.is_inference():
                pixels = pixels.clone()
            return self._encode(pixels)

    def describe(self) -> str:
        """How it is run, in words."""
        if not self.sizes:
            return "as it is written, in batches of any size"
        steps = [
            "compiled" if self.compiled is not None else "",
            "replayed as a CUDA graph" if self.graph is not None else "",
        ]
        sizes = " or ".join(
            filter(None, (", ".join(map(str, self.sizes[:-1])), str(self.sizes[-1])))
        )
        return (
            f"{' and '.join(filter(None, steps))}, in batches of {sizes}; shorter ones are "
            "filled up"
        )


def build(
    sam: Sam, recipe: Recipe, *, batch_size: int, device: torch.device, name: str = "a SAM"
) -> Encoder:
    """The encoder of a model to which the recipe has been applied. Nothing is compiled or recorded
    before a call.

    batch_size  images encoded at a time
    name        of the model, for the words beside what is kept of compiled code
    """
    if recipe.attention == "triton" and device.type == "cuda":
        kernel_configs.load(device_name(device), use)
    plain = sam.image_encoder
    module = _fused(plain) if recipe.fuse else plain
    sizes = static_sizes(recipe, batch_size)
    compiled = graph = None
    encode: Encode = module
    if recipe.compile is not None:
        _register(recipe)
        of_sam = isinstance(
            plain, ImageEncoderViT
        )  # another encoder's code is not kept between processes
        own = replace(recipe, prompts="looped")  # its code is the same however prompts are decoded
        kept_as = key(plain, name, own, batch_size, device) if of_sam else None
        encode = compiled = Compiled(module, recipe.compile, kept_as)
    if recipe.graphed:
        encode = graph = Graphed(encode, plain, batch_size, recipe.dtype)
    if sizes:
        encode = Padded(encode, sizes)
    return Encoder(encode, device, sizes, compiled, graph)


def _register(recipe: Recipe) -> None:
    """Register the operations of a recipe with PyTorch, which cannot be done while its code is
    traced.
    """
    if recipe.attention == "triton":
        from samfast.attention.custom_op import operation

        operation()
    if recipe.fuse:
        from samfast.encoding.fused_operations import operations

        operations()


def _fused(encoder: ImageEncoderViT) -> nn.Module:
    from samfast.encoding.fused_encoder import FusedEncoder

    return FusedEncoder(encoder)
