"""Static batch sizes: compiled code and CUDA graphs are made for one size, so that shorter batches
are filled up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samfast.device.cuda_graphs import graph_sizes


def static_sizes(batch_size: int, *, compiled: bool, graphed: bool) -> tuple[int, ...]:
    """The batch sizes that the encoder is run with, ascending; none if it takes any.

    Compiling takes seconds per size, so there is one. A CUDA graph alone takes milliseconds: powers
    of two, so that one image is not encoded as a whole batch.
    """
    if compiled:
        return (batch_size,)
    if graphed:
        return graph_sizes(batch_size)
    return ()


@dataclass(frozen=True)
class StaticBatches:
    """Calls `encode` with batches of static sizes only, for batches of any size.

    sizes  ascending, at least one; a batch of more images than the largest is split
    """

    encode: Callable[[Tensor], Tensor]
    sizes: tuple[int, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """As `encode`, for any number of images."""
        largest, count = self.sizes[-1], len(pixels)
        if count > largest:
            return torch.cat([self(pixels[i : i + largest]) for i in range(0, count, largest)])
        size = next(size for size in self.sizes if size >= count)
        if size == count:
            return self.encode(pixels)
        full = pixels.new_zeros(size, *pixels.shape[1:])
        full[:count] = pixels
        return self.encode(full)[:count].clone()  # a slice would keep the whole batch in memory
