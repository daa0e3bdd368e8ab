"""What a ladder's rows are scored on: a data set, and by which rule its masks are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.bench.accuracy import evaluate
from samfast.bench.dataset import Dataset, open_dataset
from samfast.bench.parity import without_tf32
from samfast.bench.sampling import sample
from samfast.types import Masks

if TYPE_CHECKING:
    from samfast.engine import SamFast


@dataclass(frozen=True)
class Scoring:
    """A data set and what is asked of it; fields are text and numbers, for other processes.

    data                 a folder with images/ and annotations.json, or None
    images, annotations  instead of data: a folder and a file
    point_rule           a name in `samfast.bench.points.RULES`; "seed" is the protocol of Segment
                         Anything, Fast
    min_area             masks of fewer pixels are left out
    limit                the first so many images only
    points               where sampled points are kept
    """

    data: str | None = None
    images: str | None = None
    annotations: str | None = None
    point_rule: str = "seed"
    min_area: int = 0
    limit: int | None = None
    points: str | None = None

    def open(self) -> Dataset:
        """The data set; raises DatasetError."""
        return open_dataset(self.data, images=self.images, annotations=self.annotations)

    def identity(self, dataset: Dataset) -> dict[str, Any]:
        """What two rows must agree in to be scored alike."""
        return {
            "annotations": dataset.digest,
            "point_rule": self.point_rule,
            "min_area": self.min_area,
            "limit": self.limit,
        }

    def score(
        self, sam: SamFast, batch_size: int, on_answers: Callable[[int, Masks], object]
    ) -> dict[str, Any]:
        """A row's `accuracy`: a click a mask, three masks a click, without TF32.

        on_answers  called with each image's place in the data set and its masks
        Raises DatasetError, or ImageError for the first image that cannot be read.
        """
        data = self.open()
        points = sample(data, self.point_rule, limit=self.limit, folder=self.points)
        with without_tf32():
            found = evaluate(
                sam,
                data,
                prompts="point",
                min_area=self.min_area,
                point_rule=self.point_rule,
                limit=self.limit,
                batch_size=batch_size,
                points=points,
                on_answers=lambda place, answers: on_answers(place, answers["point"]),
            )
        return {
            "data": Path(
                data.name
            ).name,  # the digest says which; where it lies is nobody's business
            **self.identity(data),
            "images": found["images"],
            "masks": found["masks"],
            **found["point"],
            "by_source": _points_of(found["by_source"]),
            "by_category": _points_of(found["by_category"]),
        }


def _points_of(groups: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"images": group["images"], "masks": group["masks"], **group["point"]}
        for name, group in groups.items()
    }
