"""Whether an image's embedding depends on the images that are encoded with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samfast.bench.parity import relative_error
from samfast.bench.rivals import Encoder

SIZES = (1, 2, 7, 8, 32)


@torch.no_grad()
def company_errors(
    encode: Encoder, pixels: Tensor, sizes: Sequence[int] = SIZES
) -> dict[int, float]:
    """By batch size: the largest relative error of an image in company against the same image
    alone.

    pixels   (B, 3, S, S), all different, B at least the largest size
    returns  for each size n the worst of the first n images, each seen at two places of the batch.
             Kernels may differ with the batch, and so may rounding; more than rounding is a fault,
             not a number is one too
    """
    alone = torch.cat([encode(image[None]).float() for image in pixels[: max(sizes)]])
    found = {}
    for size in sizes:
        forth = encode(pixels[:size]).float()
        back = encode(pixels[:size].flip(0)).float().flip(0)
        errors = [
            relative_error(image, own)
            for batch in (forth, back)
            for image, own in zip(batch, alone[:size], strict=True)
        ]
        found[size] = max(errors, key=lambda error: (error != error, error))
    return found
