"""Each image of a stream has the masks that it has alone, whatever is decoded with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from samfast.automatic_masks import candidates, logit_crops, mask_encoding
from samfast.automatic_masks.generate import generate_each
from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.automatic_masks.image_crops import Crop, CropGroup, cut_image
from samfast.automatic_masks.mask_records import to_records
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.point_model import PointModel
from samfast.decoding.decoder_output import DecoderOutput
from samfast.device import pipeline
from samfast.errors import DeviceMemoryError, ImageError, InputError, NumericsError
from samfast.masks import nms, postprocess
from samfast.types import FilterCounts
from tests.automatic_masks.point_models import change_plans, records_by
from tests.automatic_masks.test_memory_plan import run_generate
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
    """A number that differs for all of the pictures."""
    return float(int(pixels.sum()) % 97)


class Blobs:
    """A model whose features are numbers and whose outputs depend on the point alone.

    prompted    of each call of decode (place of the crop in its group, number of points)
    non_finite  the feature of a crop whose outputs are marked as not finite
    """

    def __init__(self, batch_across_crops: bool, most: int = 1000) -> None:
        self.sam = BlobSam(SIDE)
        self.prompted: list[list[tuple[int, int]]] = []
        self.encoded: list[int] = []
        self.events: list[str] = []
        self.non_finite: float | None = None
        self.most = most
        self.model = PointModel(
            self.encode, self.decode, SIDE, batch_across_crops=batch_across_crops
        )

    def encode(self, inputs: Inputs) -> Inputs:
        self.encoded.append(len(inputs))
        return inputs

    def decode(self, features: Inputs, crops: Any) -> DecoderOutput:
        self.prompted.append([(place, len(points)) for place, points in crops])
        self.events.append("decode")
        if sum(len(points) for _, points in crops) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        made = [
            self.sam.mask_decoder(torch.tensor([features[place]]), None, points, points, True)
            for place, points in crops
        ]
        low_res, iou = (torch.cat(each) for each in zip(*made, strict=True))
        codes = [int(features[place] == self.non_finite) for place, points in crops for _ in points]
        return DecoderOutput(low_res, iou, torch.tensor(codes, dtype=torch.uint8))

    def groups(
        self, pictures: list[np.ndarray], options: AutomaticOptions, size: int, failure: Any = None
    ) -> Iterator[CropGroup[Inputs]]:
        crops: list[Crop] = []
        for number, pixels in enumerate(pictures):
            crops += cut_image(number, pixels.shape[:2], options, self.model)
        for start in range(0, len(crops), size):
            together = crops[start : start + size]
            boxes = [(crop.image, crop.box) for crop in together]
            inputs = [feature(pictures[image][y0:y1, x0:x1]) for image, (x0, y0, x1, y1) in boxes]
            self.events.append("load")
            yield CropGroup(together, inputs, failure if start + size >= len(crops) else None)

    def records(
        self, pictures: list[np.ndarray], size: int, failure: Any = None, **options: Any
    ) -> Iterator[Any]:
        chosen = AutomaticOptions(**(OPTIONS | options))
        groups = self.groups(pictures, chosen, size, failure)
        for masks in generate_each(groups, self.model, chosen):
            yield to_records(masks, chosen.output_mode)


def records_alone(pixels: np.ndarray, **options: Any) -> list[dict]:
    sam = BlobSam(SIDE)
    return records_by(
        pixels,
        AutomaticOptions(**(OPTIONS | options)),
        encode=lambda crop: torch.tensor([feature(crop)]),
        decode=lambda features, points: sam.mask_decoder(features, None, points, points, True),
        side=SIDE,
    )


@pytest.fixture
def deferred(monkeypatch) -> None:
    """As on a GPU: outputs are filtered later, and candidates wait as logits."""
    change_plans(monkeypatch, waiting_bytes=1 << 40)


@pytest.mark.parametrize("waiting_bytes", [0, 1 << 19, 1 << 40])
@pytest.mark.parametrize("batch_across_crops", [False, True])
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
    waiting_bytes: int, batch_across_crops: bool, options: dict, monkeypatch
) -> None:
    want = [records_alone(pixels, **options) for pixels in PICTURES[:4]]
    assert min(map(len, want)) >= 3
    change_plans(monkeypatch, waiting_bytes=waiting_bytes)
    for size in (1, 4):
        blobs = Blobs(batch_across_crops)
        assert list(blobs.records(PICTURES[:4], size, **options)) == want
        assert max(blobs.encoded) <= size and set(blobs.encoded[:-1]) <= {size}
        assert all(
            sum(n for _, n in call) <= options.get("points_per_batch", 64)
            for call in blobs.prompted
        )


@pytest.mark.parametrize("waiting_bytes", [0, 1 << 40])
@pytest.mark.parametrize("max_memory", [None, 10_000_000])
def test_counts_are_the_masks_that_each_filter_leaves(
    waiting_bytes: int, max_memory: int | None, monkeypatch
) -> None:
    change_plans(monkeypatch, waiting_bytes=waiting_bytes)
    options: dict[str, Any] = {"crop_n_layers": 1, "max_memory": max_memory}
    filters: dict[str, Any] = {
        "pred_iou_thresh": 0.75,
        "stability_score_thresh": 0.9,
        "box_nms_thresh": 0.7,
        "crop_nms_thresh": 0.6,
        "min_mask_region_area": 100,
    }
    off = {name: 1.0 if "nms" in name else 0 for name in filters}

    def records(*names: str) -> Any:
        chosen = options | off | {name: filters[name] for name in names}
        (made,) = Blobs(batch_across_crops=True).records(PICTURES[:1], 4, **chosen)
        assert len(made) == made.counts.small_regions
        return made

    names = [*filters]
    counts = records(*names).counts
    assert counts.points == 5 * 25
    assert counts.candidates == 3 * 5 * 25
    assert counts.predicted_iou == records(*names[:1]).counts.stability
    assert counts.stability == records(*names[:2]).counts.stability
    assert counts.crop_edges == len(records(*names[:2]))
    assert counts.duplicates == len(records(*names[:3]))
    assert counts.crop_duplicates == len(records(*names[:4]))
    steps = [getattr(counts, each.name) for each in fields(counts)]
    assert steps[1:-1] == sorted(set(steps[1:-1]), reverse=True)  # every filter drops some
    assert records().counts.stability == counts.candidates


def test_counts_of_two_images_add_up() -> None:
    assert FilterCounts(1, 2, 3, 4, 5, 6, 7, 8) + FilterCounts(1, 1, 1, 1, 1, 1, 1, 1) == (
        FilterCounts(2, 3, 4, 5, 6, 7, 8, 9)
    )


def test_what_does_not_fill_a_call_is_decoded_with_its_neighbours(deferred) -> None:
    blobs = Blobs(batch_across_crops=True)
    list(blobs.records(PICTURES, 4))
    assert blobs.prompted == [[(0, 25), (1, 25), (2, 14)], [(2, 11), (3, 25)], [(0, 25)]]
    blobs = Blobs(batch_across_crops=False)
    list(blobs.records(PICTURES, 4))
    assert blobs.prompted == [[(0, 25)], [(1, 25)], [(2, 25)], [(3, 25)], [(0, 25)]]


def test_the_next_batch_is_queued_before_the_last_is_filtered(deferred, monkeypatch) -> None:
    blobs = Blobs(batch_across_crops=False)
    check = candidates._check_finite
    monkeypatch.setattr(
        candidates, "_check_finite", lambda *args: blobs.events.append("filter") or check(*args)
    )
    list(blobs.records(PICTURES[:2], 1, points_per_batch=13))
    assert blobs.events == [
        *("load", "decode", "decode", "filter"),
        *("load", "decode", "filter", "decode", "filter", "filter"),
    ]


def test_results_come_early_and_images_are_taken_late(deferred) -> None:
    blobs = Blobs(batch_across_crops=True)
    records = blobs.records(PICTURES * 8, 1)
    for done in range(1, 41):
        next(records)
        assert blobs.events.count("load") <= done + pipeline.MAX_JOBS + 2
    assert next(records, None) is None


def test_few_outputs_are_kept_at_once(deferred, monkeypatch) -> None:
    kept: list[int] = []
    count, inner = 0, candidates.deferred

    def counted(*args):
        nonlocal count
        count += 1
        kept.append(count)
        masks = yield from inner(*args)
        count -= 1
        return masks

    monkeypatch.setattr(candidates, "deferred", counted)
    list(Blobs(batch_across_crops=False).records(PICTURES, 2, points_per_batch=4))
    assert max(kept) == 2 and count == 0


@pytest.mark.parametrize("bad", range(5))
@pytest.mark.parametrize("batch_across_crops", [False, True])
@pytest.mark.parametrize("waiting_bytes", [0, 1 << 40])
def test_an_unsound_answer_names_its_image_after_those_before(
    bad: int, batch_across_crops: bool, waiting_bytes: int, monkeypatch
) -> None:
    change_plans(monkeypatch, waiting_bytes=waiting_bytes)
    blobs = Blobs(batch_across_crops)
    blobs.non_finite = feature(PICTURES[bad])
    records = blobs.records(PICTURES, 3, points_per_side=3)
    assert [next(records) for _ in range(bad)] == [
        records_alone(pixels, points_per_side=3) for pixels in PICTURES[:bad]
    ]
    with pytest.raises(NumericsError, match=f"^image {bad}, object 0: .*NaN"):
        next(records)


@pytest.mark.parametrize("waiting_bytes", [0, 1 << 40])
def test_a_group_s_failure_comes_after_its_images(waiting_bytes: int, monkeypatch) -> None:
    change_plans(monkeypatch, waiting_bytes=waiting_bytes)
    records = Blobs(batch_across_crops=True).records(
        PICTURES, 2, failure=(5, ImageError("image 5: broken"))
    )
    assert [next(records) for _ in PICTURES] == [records_alone(pixels) for pixels in PICTURES]
    with pytest.raises(ImageError, match="image 5: broken"):
        next(records)


def test_out_of_memory_is_halved_and_then_told(deferred) -> None:
    want = [records_alone(pixels) for pixels in PICTURES]
    blobs = Blobs(batch_across_crops=True, most=40)
    assert list(blobs.records(PICTURES, 5)) == want
    assert [sum(n for _, n in call) for call in blobs.prompted] == [64, 32, 32, 32, 29]
    with pytest.raises(DeviceMemoryError, match="points_per_batch"):
        list(Blobs(batch_across_crops=True, most=10).records(PICTURES, 5))


def test_out_of_memory_elsewhere_is_told_too(deferred, monkeypatch) -> None:
    def full(self, kept):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GeneratedMasks, "pick", full)
    with pytest.raises(DeviceMemoryError, match="points_per_batch") as caught:
        list(Blobs(batch_across_crops=True).records(PICTURES, 5))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_too_little_memory_is_said_when_an_image_is_cut() -> None:
    blobs = Blobs(batch_across_crops=False)
    with pytest.raises(InputError, match=r"max_memory=1000 .* 30 x 40"):
        cut_image(0, (30, 40), AutomaticOptions(max_memory=1000), blobs.model)


def test_crops_without_pixels_are_refused() -> None:
    blobs = Blobs(batch_across_crops=False)
    with pytest.raises(ImageError, match=r"image 4, 3 x 5 .*: too few for crop_n_layers=5"):
        cut_image(4, (3, 5), AutomaticOptions(crop_n_layers=5), blobs.model)


@pytest.mark.parametrize("waiting_bytes", [1, 1 << 16, 1 << 40])
@pytest.mark.parametrize("masks", [1, 7, 1000])
@pytest.mark.parametrize("area", [0, 30])
def test_deferred_filters_change_nothing(
    waiting_bytes: int, masks: int, area: int, monkeypatch
) -> None:
    expected = run_generate(min_mask_region_area=area)
    assert len(expected) >= 10
    change_plans(monkeypatch, waiting_bytes=waiting_bytes, masks=masks)
    spilled, on_device = [], mask_encoding.on_device
    monkeypatch.setattr(
        mask_encoding, "on_device", lambda runs: spilled.append(1) or on_device(runs)
    )
    assert run_generate(min_mask_region_area=area, points_per_batch=6) == expected
    assert bool(spilled) == (waiting_bytes < 1 << 40)


def test_the_last_masks_are_cut_out_while_duplicates_are_looked_for(deferred, monkeypatch) -> None:
    events: list[str] = []
    keep, cut = nms.start_keeping, logit_crops.LogitCropBatch.cut

    def note_keeping(*given):
        waiting = keep(*given)
        events.append("queue")
        return lambda: events.append("wait") or waiting()

    def note_cut(batch):
        if batch._index is not None:
            events.append("cut")
        cut(batch)

    monkeypatch.setattr(nms, "start_keeping", note_keeping)
    monkeypatch.setattr(logit_crops.LogitCropBatch, "cut", note_cut)
    assert run_generate(crop_n_layers=0, points_per_batch=6)
    batches = events.index("queue")
    assert batches > 0 and events == ["cut"] * batches + ["queue", "cut", "wait"]


def test_only_masks_that_remain_are_encoded(deferred, monkeypatch) -> None:
    counts, packed = [], postprocess.packed
    monkeypatch.setattr(
        postprocess, "packed", lambda low, *rest: counts.append(len(low)) or packed(low, *rest)
    )
    before, keep = [], nms.start_keeping
    monkeypatch.setattr(
        nms,
        "start_keeping",
        lambda boxes, *rest: before.append(len(boxes)) or keep(boxes, *rest),
    )
    records = run_generate(crop_n_layers=0)
    assert sum(counts) == len(records) < before[0]
