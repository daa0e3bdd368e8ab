"""The image encoder that the engine calls: normalised pixels in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from samfast.device.inference_modes import inference_modes
from samfast.encoding.compiled_blocks import CompiledEncoder
from samfast.encoding.graphed_encoder import GraphedEncoder


class Encoder:
    """An image encoder, run without gradients and the same whatever modes of torch the caller uses.

    encode    the plain, fused, compiled or graphed encoder
    sizes     the batch sizes that are run, ascending; none: any
    compiled  the compiled encoder, or None
    graph     the CUDA graphs, or None
    how       an encoder without sizes is run, in words

    The model itself stays plain: `sam.image_encoder` may be called, saved and written to.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        device: torch.device,
        sizes: tuple[int, ...] = (),
        compiled: CompiledEncoder | None = None,
        graph: GraphedEncoder | None = None,
        how: str = "as it is written",
    ) -> None:
        self._encode = encode
        self._device = device
        self.sizes = sizes
        self.compiled = compiled
        self.graph = graph
        self._how = how

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) float32 on the device -> (B, 256, S / 16, S / 16), which later calls
        do not overwrite.
        """
        with inference_modes(self._device):
            if pixels.is_inference():
                pixels = pixels.clone()
            return self._encode(pixels)

    def describe(self) -> str:
        """How it is run, in words."""
        if not self.sizes:
            return f"{self._how}, in batches of any size"
        steps = [
            "compiled" if self.compiled is not None else "",
            "replayed as a CUDA graph" if self.graph is not None else "",
        ]
        *smaller, largest = map(str, self.sizes)
        sizes = f"{', '.join(smaller)} or {largest}" if smaller else largest
        return (
            f"{' and '.join(filter(None, steps))}, in batches of {sizes}; shorter ones are "
            "filled up"
        )
