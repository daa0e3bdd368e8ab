"""What `samfast segment` says on stderr of an image, of its filters, and at the end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samfast.automatic_masks.options import AutomaticOptions
    from samfast.types import FilterCounts

FEW_MASKS = 10
"""With fewer masks of everything in an image, a message says which option finds more."""


@dataclass
class Tally:
    """How many images had which outcome, and how many masks were found."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    masks: int = 0
    started: float = field(default_factory=time.perf_counter)

    def describe(self) -> str:
        """The closing line."""
        seconds = time.perf_counter() - self.started
        counts = f"{self.done} done, {self.failed} failed, {self.skipped} skipped"
        rate = f", {self.done / seconds:.3g} images/s" if self.done and seconds > 0 else ""
        return f"{counts}; {plural(self.masks, 'mask')} in {seconds:.1f} s{rate}"


def plural(count: int, noun: str) -> str:
    """The number with its noun: "1 mask", "2 masks"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def describe_filters(counts: FilterCounts, options: AutomaticOptions) -> str:
    """How many masks each filter of the automatic search left."""
    steps = [
        f"{plural(counts.points, 'click')} gave {plural(counts.candidates, 'mask')}",
        f"{counts.predicted_iou} with predicted IoU above {options.pred_iou_thresh:g}",
        f"{counts.stability} of them with stability {options.stability_score_thresh:g} or more",
    ]
    if counts.crop_edges != counts.stability:
        steps.append(f"{counts.crop_edges} not cut off by a crop's edge")
    steps.append(f"{counts.small_regions} without duplicates")
    return ", ".join(steps)


def advice(counts: FilterCounts) -> str | None:
    """How to find more, if few masks were found: the option of the filter that dropped most."""
    if counts.small_regions >= FEW_MASKS:
        return None
    left = {
        "lower --pred-iou-thresh": counts.predicted_iou / max(1, counts.candidates),
        "lower --stability-score-thresh": counts.stability / max(1, counts.predicted_iou),
    }
    if counts.predicted_iou == 0:
        del left["lower --stability-score-thresh"]
    option, share = min(left.items(), key=lambda item: item[1])
    if share > 0.5:  # the filters are not the reason
        option = "raise --points-per-side"
    return f"{option} to find more"
