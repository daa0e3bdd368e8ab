"""The drop-in generator finds the original's masks, one for one, in its order."""

from __future__ import annotations

import inspect
import itertools
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samfast.automatic_masks.options import AutomaticOptions
from samfast.errors import ImageError, InputError, PromptError
from samfast.masks import boxes, upscale
from samfast.segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from samfast.segment_anything.mask_data import MaskData
from tests import oracle
from tests.automatic_masks.point_models import records_by
from tests.pairs import BlobSam, pair, picture

Original = oracle.load().SamAutomaticMaskGenerator

BLOBS = {"points_per_side": 7, "pred_iou_thresh": 0.75, "stability_score_thresh": 0.6}

# The packaged model on real photos: at these thresholds the original keeps 30 masks per photo.
PHOTO_OPTIONS: dict[str, Any] = {
    "points_per_side": 8,
    "crop_n_layers": 1,
    "crop_n_points_downscale_factor": 2,
    "pred_iou_thresh": 0.4,
    "stability_score_thresh": 0.7,
    "box_nms_thresh": 0.8,
    "crop_nms_thresh": 0.8,
}
PHOTO_COUNT = 2
PHOTO_COUNT_SLOW = 10
PHOTO_MASKS_AT_LEAST = 30


@pytest.fixture(autouse=True)
def _no_opencv(monkeypatch) -> None:
    """The original imports cv2 for small regions; tests/masks/test_regions.py tests ours."""
    from samfast.masks import regions

    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    monkeypatch.setattr(
        sys.modules[Original.__module__], "remove_small_regions", regions.remove_small
    )


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert list(our) == list(their)
        mask, expected = our.pop("segmentation"), their.pop("segmentation")
        if isinstance(expected, np.ndarray):
            assert mask.dtype == expected.dtype
            assert np.array_equal(mask, expected)
        else:
            assert mask == expected
        stable, expected = our.pop("stability_score"), their.pop("stability_score")
        assert stable == expected or (np.isnan(stable) and np.isnan(expected))
        assert our == their
        assert type(our["area"]) is int


@pytest.mark.parametrize("size", [(120, 160), (200, 90)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"points_per_batch": 5},
        {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.95},
        {"stability_score_offset": 0.3, "stability_score_thresh": 0.9},
        {"crop_n_layers": 1},
        {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_nms_thresh": 0.4},
        {"crop_n_layers": 1, "crop_overlap_ratio": 0.1, "min_mask_region_area": 30},
        {"min_mask_region_area": 400},
        {"points_per_side": None, "point_grids": [np.random.default_rng(0).random((20, 2))]},
    ],
    ids=str,
)
def test_masks_are_the_originals(size: tuple[int, int], options: dict) -> None:
    image = picture(*size)
    options = BLOBS | options
    theirs = Original(BlobSam(), **options).generate(image.copy())
    assert len(theirs) >= 10
    ours = SamAutomaticMaskGenerator(BlobSam(), **options).generate(image)
    assert_same(ours, theirs)


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
@pytest.mark.parametrize("area", [0, 50])
def test_output_modes(mode: str, area: int) -> None:
    options = BLOBS | {"output_mode": mode, "min_mask_region_area": area, "crop_n_layers": 1}
    theirs = Original(BlobSam(), **options).generate(picture(90, 130))
    ours = SamAutomaticMaskGenerator(BlobSam(), **options).generate(picture(90, 130))
    if mode != "binary_mask":
        assert json.loads(json.dumps(ours)) == ours
    assert_same(ours, theirs)


def test_small_regions_are_removed() -> None:
    with_regions = SamAutomaticMaskGenerator(BlobSam(), **BLOBS).generate(picture(120, 160))
    without = SamAutomaticMaskGenerator(BlobSam(), **BLOBS, min_mask_region_area=400).generate(
        picture(120, 160)
    )
    assert [r["area"] for r in with_regions] != [r["area"] for r in without]


def test_random_weights() -> None:
    theirs, ours = pair()
    options = {
        "points_per_side": 4,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
        "crop_n_layers": 1,
        "crop_nms_thresh": 1.0,
        "output_mode": "uncompressed_rle",
    }
    image = picture(100, 150)
    expected = Original(theirs, **options).generate(image)
    answer = SamAutomaticMaskGenerator(ours, **options).generate(image)
    assert len(expected) >= 30
    assert len(answer) == len(expected)
    for our, their in zip(answer, expected, strict=True):
        assert our["bbox"] == their["bbox"]
        assert our["point_coords"] == their["point_coords"]
        assert our["predicted_iou"] == pytest.approx(their["predicted_iou"], rel=1e-4, abs=1e-4)
        assert abs(our["area"] - their["area"]) <= 0.001 * 100 * 150


@pytest.mark.parametrize("crops", [0, 1])
@pytest.mark.parametrize("area", [0, 10])
def test_where_no_mask_passes_the_list_is_empty(crops: int, area: int) -> None:
    generator = SamAutomaticMaskGenerator(
        BlobSam(),
        points_per_side=3,
        pred_iou_thresh=5.0,
        crop_n_layers=crops,
        min_mask_region_area=area,
    )
    assert generator.generate(picture(60, 80)) == []


def test_names_attributes_and_defaults() -> None:
    theirs, ours = Original(BlobSam()), SamAutomaticMaskGenerator(BlobSam())
    expected = [(p.name, p.default) for p in inspect.signature(Original).parameters.values()]
    assert [
        (p.name, p.default)
        for p in inspect.signature(SamAutomaticMaskGenerator).parameters.values()
    ] == expected
    assert set(vars(theirs)) == set(vars(ours))
    for name, value in vars(theirs).items():
        if name == "point_grids":
            assert all(np.array_equal(a, b) for a, b in zip(value, ours.point_grids, strict=True))
        elif name != "predictor":
            assert getattr(ours, name) == value


def test_options_may_be_changed_afterwards() -> None:
    generator = SamAutomaticMaskGenerator(BlobSam(), points_per_side=7)
    for name, value in BLOBS.items():
        setattr(generator, name, value)
    expected = SamAutomaticMaskGenerator(BlobSam(), **BLOBS).generate(picture(80, 90))
    assert_same(generator.generate(picture(80, 90)), expected)
    generator.output_mode = "jpeg"
    with pytest.raises(InputError, match="jpeg"):
        generator.generate(picture(80, 90))


def test_generate_masks_then_postprocess_small_regions_is_generate() -> None:
    options = BLOBS | {"min_mask_region_area": 60, "output_mode": "uncompressed_rle"}
    image = picture(120, 160)
    for generator in (
        SamAutomaticMaskGenerator(BlobSam(), **options),
        Original(BlobSam(), **options),
    ):
        data = generator._generate_masks(image)
        done = generator.postprocess_small_regions(data, 60, 0.7)
        assert done is data
        records = SamAutomaticMaskGenerator(BlobSam(), **options).generate(image)
        assert done["rles"] == [record["segmentation"] for record in records]
        assert [b.tolist() for b in boxes.to_xywh(done["boxes"])] == [r["bbox"] for r in records]
    empty = MaskData(rles=[])
    assert SamAutomaticMaskGenerator.postprocess_small_regions(empty, 60, 0.7) is empty


def test_the_image_is_forgotten_afterwards() -> None:
    generator = SamAutomaticMaskGenerator(BlobSam(), **BLOBS)
    generator.generate(picture(50, 60))
    assert not generator.predictor.is_image_set


def test_chunks_change_nothing(monkeypatch) -> None:
    image = picture(120, 160)
    whole = SamAutomaticMaskGenerator(BlobSam(), **BLOBS).generate(image)
    monkeypatch.setattr(upscale, "CPU_BUDGET", 1)
    assert_same(SamAutomaticMaskGenerator(BlobSam(), **BLOBS).generate(image), whole)


def test_masks_of_low_predicted_iou_are_never_upscaled(monkeypatch) -> None:
    upscaled = []
    inner = upscale.logits
    monkeypatch.setattr(
        upscale, "logits", lambda part, *rest: upscaled.append(len(part)) or inner(part, *rest)
    )
    low_res = torch.full((2, 3, 8, 8), 5.0)
    iou = torch.tensor([[0.1, 0.9, 0.2], [0.3, 0.1, 0.1]])
    records = records_by(
        picture(20, 30),
        AutomaticOptions(point_grids=[np.array([[0.2, 0.3], [0.7, 0.6]])], points_per_side=None),
        encode=lambda pixels: pixels.shape,
        decode=lambda features, points: (low_res, iou),
        side=32,
    )
    assert upscaled == [1]
    assert [record["predicted_iou"] for record in records] == [pytest.approx(0.9)]
    assert records[0]["segmentation"].all()
    assert records[0]["point_coords"] == [[0.2 * 30, 0.3 * 20]]


def test_the_arguments_of_encode_and_decode() -> None:
    image = picture(20, 30)
    seen: list[Any] = []

    def encode(pixels):
        seen.append(pixels)
        return "features"

    def decode(features, points):
        assert features == "features"
        seen.append(points)
        return torch.zeros(len(points), 3, 8, 8), torch.zeros(len(points), 3)

    options = AutomaticOptions(points_per_side=2, points_per_batch=3)
    assert records_by(image, options, encode, decode, side=32) == []
    assert np.array_equal(seen[0], image)
    assert [points.shape for points in seen[1:]] == [(3, 1, 2), (1, 1, 2)]
    assert all(points.dtype == torch.float64 for points in seen[1:])
    assert seen[2][0, 0].tolist() == [0.75 * 32, 0.75 * 21]


def test_bad_options_and_images() -> None:
    with pytest.raises(PromptError, match="exactly one"):
        SamAutomaticMaskGenerator(BlobSam(), points_per_side=None)
    with pytest.raises(InputError, match="output_mode"):
        SamAutomaticMaskGenerator(BlobSam(), output_mode="png")
    with pytest.raises(ImageError, match="float64"):
        SamAutomaticMaskGenerator(BlobSam()).generate(np.zeros((4, 4, 3)))  # type: ignore[arg-type]


def photos(folder: Path, count: int) -> Iterator[np.ndarray]:
    listed = json.loads((folder / "val" / "annotations.json").read_text())["images"]
    by_source = [
        list(group) for _, group in itertools.groupby(listed, key=lambda image: image["source"])
    ]
    mixed = [
        image for row in itertools.zip_longest(*by_source) for image in row if image is not None
    ]
    for image in mixed[:count]:
        yield np.array(Image.open(folder / "val" / "images" / image["file_name"]).convert("RGB"))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "count", [PHOTO_COUNT, pytest.param(PHOTO_COUNT_SLOW, marks=pytest.mark.slow)]
)
def test_the_packaged_model_on_real_photos(photo_data: Path, count: int) -> None:
    from samfast.model.config import CONFIGS
    from samfast.segment_anything import sam_model_registry
    from tests.pairs import original

    ours = sam_model_registry["vit_xs"]()
    theirs = original(CONFIGS["vit_xs"])
    theirs.load_state_dict(ours.state_dict(), strict=True)
    counts = []
    for image in photos(photo_data, count):
        expected = Original(theirs, **PHOTO_OPTIONS).generate(image)
        answer = SamAutomaticMaskGenerator(ours, **PHOTO_OPTIONS).generate(image)
        counts.append(len(expected))
        assert len(answer) == len(expected)
        for our, their in zip(answer, expected, strict=True):
            assert our["bbox"] == their["bbox"]
            assert our["crop_box"] == their["crop_box"]
            assert our["point_coords"] == their["point_coords"]
            assert our["predicted_iou"] == pytest.approx(their["predicted_iou"], rel=1e-4)
            # Sums in another order move a pixel of a small mask over one of the two thresholds.
            a_pixel = 1.1 / their["area"]
            assert our["stability_score"] == pytest.approx(
                their["stability_score"], abs=max(1e-3, a_pixel)
            )
            differing = np.count_nonzero(our["segmentation"] != their["segmentation"])
            assert differing <= 1e-4 * image.shape[0] * image.shape[1]
    assert np.mean(counts) >= PHOTO_MASKS_AT_LEAST
