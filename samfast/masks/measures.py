"""What a mask is measured by, and what one pass over low-resolution logits yields."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Measures:
    """Of N masks at a threshold; all on one device.

    area   (N,) int32, pixels
    boxes  (N, 4) int64 XYXY, the last pixel included, zeros for an empty mask (`samfast.masks.boxes.from_masks`)
    inner  (N,) int32, pixels above threshold + offset
    outer  (N,) int32, pixels above threshold - offset
    """

    area: Tensor
    boxes: Tensor
    inner: Tensor
    outer: Tensor

    def stability(self) -> Tensor:
        """(N,) float32, as `samfast.masks.stability.score`: NaN where both masks are empty."""
        return self.inner / self.outer


@dataclass(frozen=True, eq=False)
class Upscaled:
    """What was asked for of N masks (H, W); the rest None.

    masks   (N, H, W) bool
    packed  (N, W, ceil(H / 32)) int32, see `samfast.masks.packed`
    """

    measures: Measures | None
    masks: Tensor | None
    packed: Tensor | None
