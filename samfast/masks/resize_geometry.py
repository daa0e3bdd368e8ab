"""The place of an image in the model's square input."""

from __future__ import annotations

from dataclasses import dataclass

from samfast.types import Size


@dataclass(frozen=True)
class ResizeGeometry:
    """Sizes (height, width) in pixels, which map the decoder's logits back to the image.

    input_size     the image inside the square, at its upper left
    original_size  the image before it was resized
    side           the square's side
    """

    input_size: Size
    original_size: Size
    side: int
