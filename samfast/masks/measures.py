"""What a mask is measured by, and what one pass over low-resolution logits yields."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Measures:
    """Of N masks at a threshold.

    table  (N, 7) int32: area, inner, outer and box of each, so that one copy brings all to the host
    """

    table: Tensor

    @property
    def area(self) -> Tensor:
        """(N,) int32, pixels."""
        return self.table[:, 0]

    @property
    def inner(self) -> Tensor:
        """(N,) int32, pixels above threshold + offset."""
        return self.table[:, 1]

    @property
    def outer(self) -> Tensor:
        """(N,) int32, pixels above threshold - offset."""
        return self.table[:, 2]

    @property
    def boxes(self) -> Tensor:
        """(N, 4) int64 XYXY, the last pixel included, zeros for an empty mask
        (`samfast.masks.boxes.from_masks`).
        """
        return self.table[:, 3:].long()

    def stability(self) -> Tensor:
        """(N,) float32, as `samfast.masks.stability.score`: NaN where both masks are empty."""
        return self.inner / self.outer


@dataclass(frozen=True, eq=False)
class Upscaled:
    """What was asked for of N masks (H, W); the rest None.

    masks   (N, H, W) bool
    packed  (N, W, ceil(H / 32)) int32, see `samfast.masks.bit_masks`
    """

    measures: Measures | None
    masks: Tensor | None
    packed: Tensor | None
