"""How an image lies in the model's square."""

from __future__ import annotations

from dataclasses import dataclass

from samfast.types import Size


@dataclass(frozen=True)
class ResizeGeometry:
    """What leads from the decoder's logits back to the image; sizes are (height, width) in pixels.

    input_size     the image inside the square, at its upper left
    original_size  the image before it was resized
    side           the square's side
    """

    input_size: Size
    original_size: Size
    side: int
