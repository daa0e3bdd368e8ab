"""The measures of masks, and the one signature of the pass that computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from samfast.masks.resize_geometry import ResizeGeometry


@dataclass(frozen=True, eq=False)
class Measures:
    """Measures of N masks at a threshold.

    table  (N, 7) int32: area, inner, outer and box of each, which one copy brings to the host
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
        """(N, 4) int64 XYXY as `samfast.masks.boxes.from_masks`, zeros for an empty mask."""
        return self.table[:, 3:].long()


@dataclass(frozen=True, eq=False)
class Postprocessed:
    """Results of `Postprocess` for N masks (H, W); None where they were not requested.

    masks   (N, H, W) bool
    packed  (N, W, ceil(H / 32)) int32, see `samfast.masks.bit_masks`
    """

    measures: Measures | None
    masks: Tensor | None
    packed: Tensor | None


class Postprocess(Protocol):
    """Low-resolution logits to masks: the signature of the kernel's launch and of its reference."""

    def __call__(
        self,
        low_res: Tensor,
        geometry: ResizeGeometry,
        threshold: float,
        *,
        offset: float | None = None,
        masks: bool = False,
        pack: bool = False,
        wanted: Tensor | None = None,
    ) -> Postprocessed:
        """Any of measures, masks and packed masks, in one pass.

        low_res    (N, h, w) float32, float16 or bfloat16 logits of the decoder
        threshold  a pixel is set if its logit is above it; NaN is not
        offset     measure, with counts at the threshold plus and minus this
        masks      return the masks as bool
        pack       return the masks as bits
        wanted     (N,) bool: other masks have measures of 0 and undefined pixels; None: all masks
        """
