"""The data set that a ladder's rows are scored on, and how its masks are prompted for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.bench.accuracy import evaluate
from samfast.bench.coco_dataset import Dataset, open_dataset
from samfast.bench.parity import without_tf32
from samfast.errors import DatasetError
from samfast.types import Masks

if TYPE_CHECKING:
    from samfast.engine import SamFast


@dataclass(frozen=True)
class Scoring:
    """A data set and its prompts; fields are text and numbers, to be sent to other processes.

    data                 a folder with images/ and annotations.json, or None
    images, annotations  instead of data: a folder and a file
    point_rule           a name in `mask_points.RULES`
    min_area             masks of fewer pixels are left out
    limit                the first images only
    """

    data: str | None = None
    images: str | None = None
    annotations: str | None = None
    point_rule: str = "seed"
    min_area: int = 0
    limit: int | None = None

    def open(self) -> Dataset:
        """The data set; raises DatasetError, also where there is nothing to score."""
        data = open_dataset(self.data, images=self.images, annotations=self.annotations)
        if not any(image.annotations for image in data.images[: self.limit]):
            raise DatasetError(
                f"{data.name}: the first {self.limit} images have no annotations to score; raise "
                "the limit"
            )
        return data

    def identity(self, data: Dataset) -> dict[str, Any]:
        """The keys of two rows' `accuracy` that agree if they were scored on the same masks."""
        return {
            "annotations": data.digest,
            "point_rule": self.point_rule,
            "min_area": self.min_area,
            "limit": self.limit,
        }

    def score(
        self, sam: SamFast, batch_size: int, on_answers: Callable[[int, Masks], object]
    ) -> dict[str, Any]:
        """A row's `accuracy`: a click for each mask, three masks a click, without TF32.

        on_answers  called with each image's index in the data set and its masks
        returns     "data", the file's name, the keys of `identity`, "images", "masks", "miou",
                    "miou_oracle", "filled_box", "by_source" and "by_category"

        Raises DatasetError, or ImageError for the first image that cannot be read.
        """
        data = self.open()
        with without_tf32():
            result = evaluate(
                sam,
                data,
                prompts="point",
                min_area=self.min_area,
                limit=self.limit,
                batch_size=batch_size,
                point_rule=self.point_rule,
                on_answers=lambda index, answers: on_answers(index, answers["point"]),
            )
        return {
            "data": Path(data.name).name,
            **self.identity(data),
            **_of_points(result),
            **{
                key: {name: _of_points(group) for name, group in result[key].items()}
                for key in ("by_source", "by_category")
            },
        }


def _of_points(group: dict[str, Any]) -> dict[str, Any]:
    return {"images": group["images"], "masks": group["masks"], **group["point"]}
