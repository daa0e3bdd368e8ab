"""The state of a crop from the decoding of its points to its masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.automatic_masks.image_crops import Crop
from samfast.automatic_masks.memory_plan import MemoryPlan
from samfast.device.retry import RetryOnOOM


@dataclass(eq=False)
class CropState:
    """A crop in progress.

    place       of the crop in its group
    retry       shared by all work of an image
    candidates  of each batch of its points, None while they are not known
    held_bytes  device memory of these
    """

    crop: Crop
    place: int
    plan: MemoryPlan
    retry: RetryOnOOM
    candidates: list[GeneratedMasks | None] = field(default_factory=list)
    held_bytes: int = 0


class PointRange(NamedTuple):
    """The points from start to stop of a crop, which are decoded together."""

    state: CropState
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether no points of the crop follow."""
        return self.stop == len(self.state.crop.points)
