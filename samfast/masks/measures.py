"""The measures of masks, and the one signature of the pass that computes them.

Measures are a table (N, 7) int32, which one copy brings to the host: the columns below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from samfast.masks.resize_geometry import ResizeGeometry

AREA, INNER, OUTER, BOX = 0, 1, 2, slice(3, 7)
"""Pixels above the threshold, above threshold + offset, and above threshold - offset; the box as
`samfast.masks.boxes.from_masks`."""


@dataclass(frozen=True, eq=False)
class Postprocessed:
    """Results of `Postprocess` for N masks (H, W); None where they were not requested.

    measures  (N, 7) int32
    masks     (N, H, W) bool
    packed    (N, W, ceil(H / 32)) int32, see `samfast.masks.bit_masks`
    """

    measures: Tensor | None
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

        low_res    (N, h, w), or (P, M, h, w) where N = P * M, float32, float16 or
                   bfloat16 logits of the decoder
        threshold  a pixel is set if its logit is above it; NaN is not
        offset     measure, with counts at the threshold plus and minus this
        masks      return the masks as bool
        pack       return the masks as bits
        wanted     (N,) bool: other masks have measures of 0 and undefined pixels; None: all masks
        """
