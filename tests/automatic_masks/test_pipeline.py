"""A stream of images gives each one's own results, in order, whatever is encoded and decoded with
it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from samfast.automatic_masks import candidates, generate, memory_plan, pipeline
from samfast.automatic_masks.candidates import Answer
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.pipeline import Crop, Group, Model, cut
from samfast.errors import DeviceMemoryError, ImageError, InputError, NumericsError
from samfast.images import input_size
from tests.pairs import BlobSam, picture

SIDE = 256
OPTIONS: dict[str, Any] = {
    "points_per_side": 5,
    "pred_iou_thresh": 0.7,
    "stability_score_thresh": 0.5,
    "output_mode": "coco_rle",
}
PICTURES = [
    picture(120, 160, 0),
    picture(90, 60, 1),
    picture(64, 200, 2),
    picture(120, 160, 3),
    picture(70, 70, 4),
]
Inputs = list[float]


def feature(pixels: np.ndarray) -> float:
    return float(int(pixels.sum()) % 97)  # tells all of them apart


class Blobs:
    """Crops' features are numbers, and every answer is its own point's; what was asked is kept."""

    def __init__(self, batch_across_crops: bool, most: int = 1000) -> None:
        self.sam = BlobSam(SIDE)
        self.asked: list[list[tuple[int, int]]] = []
        self.encoded: list[int] = []
        self.events: list[str] = []
        self.non_finite: float | None = None  # the feature of a crop whose answers are
        self.most = most
        self.model = Model(
            self.encode,
            self.decode,
            SIDE,
            input_size,
            0.0,
            torch.device("cpu"),
            batch_across_crops=batch_across_crops,
        )

    def encode(self, inputs: Inputs) -> Inputs:
        self.encoded.append(len(inputs))
        return inputs

    def decode(self, features: Inputs, pieces: Any) -> Answer:
        self.asked.append([(place, len(points)) for place, points in pieces])
        self.events.append("decode")
        if sum(len(points) for _, points in pieces) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        made = [
            self.sam.mask_decoder(torch.tensor([features[place]]), None, points, points, True)
            for place, points in pieces
        ]
        low_res, iou = (torch.cat(each) for each in zip(*made, strict=True))
        codes = [
            int(features[place] == self.non_finite) for place, points in pieces for _ in points
        ]
        return Answer(low_res, iou, torch.tensor(codes, dtype=torch.uint8))

    def groups(
        self, pictures: list[np.ndarray], options: AutomaticOptions, size: int, failure: Any = None
    ) -> Iterator[Group[Inputs]]:
        crops: list[Crop] = []
        for number, pixels in enumerate(pictures):
            crops += cut(number, pixels.shape[:2], options, self.model)
        for start in range(0, len(crops), size):
            own = crops[start : start + size]
            boxes = [(crop.image, crop.view.crop) for crop in own]
            inputs = [feature(pictures[image][y0:y1, x0:x1]) for image, (x0, y0, x1, y1) in boxes]
            self.events.append("load")
            yield Group(own, inputs, failure if start + size >= len(crops) else None)

    def records(
        self, pictures: list[np.ndarray], size: int, failure: Any = None, **options: Any
    ) -> Iterator[Any]:
        chosen = AutomaticOptions(**(OPTIONS | options))
        groups = self.groups(pictures, chosen, size, failure)
        for own, found in generate.find_each(groups, self.model, chosen):
            yield generate.records(found, own, chosen.output_mode)


def alone(pixels: np.ndarray, **options: Any) -> list[dict]:
    sam = BlobSam(SIDE)
    return generate.generate(
        pixels,
        AutomaticOptions(**(OPTIONS | options)),
        encode=lambda crop: torch.tensor([feature(crop)]),
        decode=lambda features, points: sam.mask_decoder(features, None, points, points, True),
        side=SIDE,
        input_size=input_size,
    )


@pytest.fixture
def waiting(monkeypatch) -> None:
    """As on a GPU: what is decoded is looked at later."""
    inner = memory_plan.plan
    monkeypatch.setattr(memory_plan, "plan", lambda *args: replace(inner(*args), held=1 << 40))


@pytest.mark.parametrize("held", [0, 1 << 19, 1 << 40])
@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"points_per_batch": 7, "output_mode": "uncompressed_rle"},
        {
            "crop_n_layers": 1,
            "points_per_side": 4,
            "crop_n_points_downscale_factor": 2,
            "box_nms_thresh": 0.8,
        },
        {"min_mask_region_area": 40, "points_per_batch": 200},
    ],
    ids=str,
)
def test_each_image_as_alone(
    held: int, batch_across_crops: bool, options: dict, monkeypatch
) -> None:
    want = [alone(pixels, **options) for pixels in PICTURES[:4]]
    assert min(map(len, want)) >= 3
    inner = memory_plan.plan
    monkeypatch.setattr(memory_plan, "plan", lambda *args: replace(inner(*args), held=held))
    for size in (1, 4):
        blobs = Blobs(batch_across_crops)
        assert list(blobs.records(PICTURES[:4], size, **options)) == want
        assert max(blobs.encoded) <= size and set(blobs.encoded[:-1]) <= {size}
        assert all(
            sum(n for _, n in own) <= options.get("points_per_batch", 64) for own in blobs.asked
        )


def test_what_does_not_fill_a_call_is_decoded_with_its_neighbours(waiting) -> None:
    blobs = Blobs(batch_across_crops=True)
    list(blobs.records(PICTURES, 4))
    assert blobs.asked == [[(0, 25), (1, 25), (2, 14)], [(2, 11), (3, 25)], [(0, 25)]]
    blobs = Blobs(batch_across_crops=False)
    list(blobs.records(PICTURES, 4))
    assert blobs.asked == [[(0, 25)], [(1, 25)], [(2, 25)], [(3, 25)], [(0, 25)]]


def test_the_next_batch_is_queued_before_the_last_is_looked_at(waiting, monkeypatch) -> None:
    blobs = Blobs(batch_across_crops=False)
    passing = candidates.DeferredCandidates.passing
    monkeypatch.setattr(
        candidates.DeferredCandidates,
        "passing",
        lambda own: blobs.events.append("look") or passing(own),
    )
    list(blobs.records(PICTURES[:2], 1, points_per_batch=13))
    assert blobs.events == [
        *("load", "decode", "decode", "look"),
        *("load", "decode", "look", "decode", "look", "look"),
    ]


def test_results_come_early_and_images_are_taken_late(waiting) -> None:
    blobs = Blobs(batch_across_crops=True)
    records = blobs.records(PICTURES * 8, 1)
    for done in range(1, 41):
        next(records)
        assert blobs.events.count("load") <= done + pipeline.JOBS + 2
    assert next(records, None) is None


def test_few_answers_are_held_at_once(waiting, monkeypatch) -> None:
    alive: list[int] = []
    count = 0
    made, passing = candidates.DeferredCandidates.__init__, candidates.DeferredCandidates.passing

    def init(self, *args):
        nonlocal count
        count += 1
        alive.append(count)
        made(self, *args)

    def look(self):
        nonlocal count
        count -= 1
        return passing(self)

    monkeypatch.setattr(candidates.DeferredCandidates, "__init__", init)
    monkeypatch.setattr(candidates.DeferredCandidates, "passing", look)
    list(Blobs(batch_across_crops=False).records(PICTURES, 2, points_per_batch=4))
    assert max(alive) == 2 and count == 0


@pytest.mark.parametrize("bad", range(5))
@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("held", [0, 1 << 40])
def test_an_unsound_answer_names_its_image_after_those_before(
    bad: int, batch_across_crops: bool, held: int, monkeypatch
) -> None:
    inner = memory_plan.plan
    monkeypatch.setattr(memory_plan, "plan", lambda *args: replace(inner(*args), held=held))
    blobs = Blobs(batch_across_crops)
    blobs.non_finite = feature(PICTURES[bad])
    records = blobs.records(PICTURES, 3, points_per_side=3)
    assert [next(records) for _ in range(bad)] == [
        alone(own, points_per_side=3) for own in PICTURES[:bad]
    ]
    with pytest.raises(NumericsError, match=f"^image {bad}, object 0: .*NaN"):
        next(records)


@pytest.mark.parametrize("held", [0, 1 << 40])
def test_a_group_s_failure_comes_after_its_images(held: int, monkeypatch) -> None:
    inner = memory_plan.plan
    monkeypatch.setattr(memory_plan, "plan", lambda *args: replace(inner(*args), held=held))
    records = Blobs(batch_across_crops=True).records(
        PICTURES, 2, failure=(5, ImageError("image 5: broken"))
    )
    assert [next(records) for _ in PICTURES] == [alone(own) for own in PICTURES]
    with pytest.raises(ImageError, match="image 5: broken"):
        next(records)


def test_out_of_memory_is_halved_and_then_told(waiting) -> None:
    want = [alone(own) for own in PICTURES]
    blobs = Blobs(batch_across_crops=True, most=40)
    assert list(blobs.records(PICTURES, 5)) == want
    assert [sum(n for _, n in own) for own in blobs.asked] == [64, 32, 32, 32, 29]
    with pytest.raises(DeviceMemoryError, match="points_per_batch"):
        list(Blobs(batch_across_crops=True, most=10).records(PICTURES, 5))


def test_out_of_memory_elsewhere_is_told_too(waiting, monkeypatch) -> None:
    def full(self, kept):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(candidates.Candidates, "pick", full)
    with pytest.raises(DeviceMemoryError, match="points_per_batch") as caught:
        list(Blobs(batch_across_crops=True).records(PICTURES, 5))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_too_little_memory_is_said_when_an_image_is_cut() -> None:
    blobs = Blobs(batch_across_crops=False)
    with pytest.raises(InputError, match=r"max_memory=1000 .* 30 x 40"):
        cut(0, (30, 40), AutomaticOptions(max_memory=1000), blobs.model)
