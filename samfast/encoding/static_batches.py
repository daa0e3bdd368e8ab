"""Static batch sizes: compiled code and CUDA graphs are made for a size, so a short batch is filled
up to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samfast.device.cuda_graphs import Encode
from samfast.recipes.recipe import Recipe


def static_sizes(recipe: Recipe, batch_size: int) -> tuple[int, ...]:
    """The batch sizes that the encoder is run with, ascending; none if it takes any.

    Compiling costs seconds a size, so there is one. A CUDA graph alone costs milliseconds: powers
    of two, so that a single click's image is not encoded as a whole batch.
    """
    if recipe.compile:
        return (batch_size,)
    if recipe.graphed:
        powers = [1 << n for n in range(batch_size.bit_length())]
        return tuple(sorted({*powers, batch_size}))
    return ()


@dataclass(frozen=True)
class Padded:
    """Runs `encode` with batches of static sizes only, for batches of any.

    sizes  ascending, at least one; a batch of more images than the largest goes in parts
    """

    encode: Encode
    sizes: tuple[int, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """As `Encode`."""
        largest = self.sizes[-1]
        if len(pixels) > largest:
            return torch.cat(
                [self(pixels[i : i + largest]) for i in range(0, len(pixels), largest)]
            )
        size = next(size for size in self.sizes if size >= len(pixels))
        if size == len(pixels):
            return self.encode(pixels)
        full = pixels.new_zeros(size, *pixels.shape[1:])
        full[: len(pixels)] = pixels
        return self.encode(full)[
            : len(pixels)
        ].clone()  # a slice would keep the whole batch's memory
