"""Clients that override a step of the automatic mask generator: theirs is the one that runs.

The original's own generator runs the same subclass; the records must be equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import samfast.segment_anything as samfast_package
from tests import oracle
from tests.pairs import BlobSam, picture

OPTIONS = {"points_per_side": 7, "pred_iou_thresh": 0.75, "stability_score_thresh": 0.6}

IMAGE = (120, 160)

Masks = list[np.ndarray]


def masks_of(records: list[dict[str, Any]]) -> Masks:
    return [record["segmentation"] for record in records]


def cnos(package: Any) -> Masks:
    """cnos: its own `_generate_masks`, which calls `_process_crop`, and NMS across the crops."""
    amg = package.utils.amg

    class Generator(package.SamAutomaticMaskGenerator):  # type: ignore[misc,name-defined]
        def _generate_masks(self, image: np.ndarray) -> dict[str, Tensor]:
            size = image.shape[:2]
            boxes, layers = amg.generate_crop_boxes(
                size, self.crop_n_layers, self.crop_overlap_ratio
            )
            data = amg.MaskData()
            for box, layer in zip(boxes, layers, strict=True):
                data.cat(self._process_crop(image, box, layer, size))
            kept = oracle.batched_nms(
                data["boxes"].float(),
                1 / oracle.box_area(data["crop_boxes"]),
                torch.zeros(len(data["boxes"])),
                self.crop_nms_thresh,
            )
            data.filter(kept)
            found = [torch.from_numpy(amg.rle_to_mask(rle)) for rle in data["rles"]]
            return {"masks": torch.stack(found), "boxes": data["boxes"]}

    generator = Generator(BlobSam(), crop_n_layers=1, **OPTIONS)
    answer = generator._generate_masks(picture(*IMAGE))
    x0, y0, x1, y1 = answer["boxes"].unbind(1)
    assert bool((x1 > x0).all() and (y1 > y0).all())
    return [*answer["masks"].numpy()]


def few_points(package: Any) -> Masks:
    """A subclass whose `_process_batch` leaves the clicks of the picture's left half out."""

    class Generator(package.SamAutomaticMaskGenerator):  # type: ignore[misc,name-defined]
        def _process_batch(self, points: np.ndarray, im_size: Any, *rest: Any) -> Any:
            return super()._process_batch(points[points[:, 0] > im_size[1] / 2], im_size, *rest)

    generator = Generator(BlobSam(), points_per_batch=21, **OPTIONS)
    return masks_of(generator.generate(picture(*IMAGE)))


def one_crop_only(package: Any) -> Masks:
    """A subclass whose `_process_crop` calls the original's and keeps the best masks of it."""

    class Generator(package.SamAutomaticMaskGenerator):  # type: ignore[misc,name-defined]
        def _process_crop(self, image: np.ndarray, box: Any, layer: int, size: Any) -> Any:
            data = super()._process_crop(image, box, layer, size)
            data.filter(torch.argsort(data["iou_preds"], descending=True, stable=True)[:3])
            return data

    generator = Generator(BlobSam(), crop_n_layers=1, **OPTIONS)
    return masks_of(generator.generate(picture(*IMAGE)))


def bolder_predictor(package: Any) -> Masks:
    """A predictor whose `predict_torch` grows every mask, as test-time changes do."""

    class Predictor(package.SamPredictor):  # type: ignore[misc,name-defined]
        def predict_torch(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
            masks, iou, low = super().predict_torch(*args, **options)
            return masks + 1.5, iou, low

    generator = package.SamAutomaticMaskGenerator(BlobSam(), **OPTIONS)
    generator.predictor = Predictor(BlobSam())
    return masks_of(generator.generate(picture(*IMAGE)))


def foreign_predictor(package: Any) -> Masks:
    """An object with the predictor's methods and nothing else, as wrappers of engines are."""

    class Predictor:
        def __init__(self) -> None:
            self.model, self.device = BlobSam(), torch.device("cpu")
            self.transform = package.utils.transforms.ResizeLongestSide(256)

        def set_image(self, image: np.ndarray) -> None:
            self.size = image.shape[:2]

        def reset_image(self) -> None:
            del self.size

        def predict_torch(
            self, coords: Tensor, labels: Tensor, multimask_output: bool, return_logits: bool
        ) -> tuple[Tensor, Tensor, Tensor]:
            assert multimask_output
            assert return_logits
            low, iou = self.model.mask_decoder(torch.zeros(1), None, coords, labels, True)
            height, width = self.size
            inner = (round(256 * height / max(self.size)), round(256 * width / max(self.size)))
            return self.model.postprocess_masks(low, inner, self.size), iou, low

    generator = package.SamAutomaticMaskGenerator(BlobSam(), **OPTIONS)
    generator.predictor = Predictor()
    return masks_of(generator.generate(picture(*IMAGE)))


@pytest.mark.parametrize(
    "client", [cnos, few_points, one_crop_only, bolder_predictor, foreign_predictor]
)
def test_generator(client: Callable[[Any], Masks]) -> None:
    theirs, ours = client(oracle.load()), client(samfast_package)
    assert len(theirs) > 3
    assert len(ours) == len(theirs)
    assert all(np.array_equal(our, their) for our, their in zip(ours, theirs, strict=True))


def test_the_overrides_change_the_masks() -> None:
    """Otherwise equal masks would not show that the clients' steps ran."""
    generator = oracle.load().SamAutomaticMaskGenerator(BlobSam(), **OPTIONS)
    plain = masks_of(generator.generate(picture(*IMAGE)))
    for client in (few_points, one_crop_only, bolder_predictor):
        changed = client(oracle.load())
        assert len(changed) != len(plain) or not all(map(np.array_equal, changed, plain))
