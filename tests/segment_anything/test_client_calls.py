"""How projects written for segment_anything extend and call its predictor and generator.

The calling patterns are theirs, the code is ours; each runs on the original too, for comparison.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import samfast
from samfast import segment_anything
from samfast.errors import PromptError
from samfast.model.sam import build
from samfast.segment_anything.modeling import ImageEncoderViT
from tests import oracle
from tests.pairs import SMALL, BlobSam, pair, picture, relative_error

original = oracle.load()
IMAGE = picture(120, 160)
BLOBS: dict[str, Any] = {
    "points_per_side": 7,
    "pred_iou_thresh": 0.75,
    "stability_score_thresh": 0.6,
    "output_mode": "uncompressed_rle",
}
CROPS: dict[str, Any] = {**BLOBS, "crop_n_layers": 1, "min_mask_region_area": 30}


def small() -> tuple[Any, Any]:
    """The original's model and the registry's with the same random weights."""
    theirs, _ = pair()
    ours = build(SMALL, encoder=ImageEncoderViT)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.fixture(autouse=True)
def _no_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original imports cv2 for small regions."""
    import sys
    import types

    from samfast.masks import regions

    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    module = sys.modules[original.SamAutomaticMaskGenerator.__module__]
    monkeypatch.setattr(module, "remove_small_regions", regions.remove_small)


def segmenter(package: Any, amg: Any, model: Any, **options: Any) -> Any:
    """cnos: `_generate_masks` of its own, which calls `_process_crop`."""

    class Segmenter(package.SamAutomaticMaskGenerator):  # type: ignore[misc]
        def _generate_masks(self, image: np.ndarray) -> Any:
            boxes, layers = amg.generate_crop_boxes(
                image.shape[:2], self.crop_n_layers, self.crop_overlap_ratio
            )
            data = amg.MaskData()
            for box, layer in zip(boxes, layers, strict=True):
                data.cat(self._process_crop(image, box, layer, image.shape[:2]))
            masks = torch.stack([torch.from_numpy(amg.rle_to_mask(rle)) for rle in data["rles"]])
            return {"masks": masks, "boxes": data["boxes"], "crop_boxes": data["crop_boxes"]}

    return Segmenter(model, **options)


def test_a_generator_with_its_own_masks() -> None:
    theirs, ours = (
        segmenter(package, package.utils.amg, BlobSam(), **CROPS)._generate_masks(IMAGE)
        for package in (original, segment_anything)
    )
    assert len(theirs["masks"]) > 10
    for name, expected in theirs.items():
        assert torch.equal(ours[name], expected), name


def halves(package: Any, calls: list[str]) -> type[Any]:
    """A generator whose batches drop every other mask."""

    class Halves(package.SamAutomaticMaskGenerator):  # type: ignore[misc]
        def _process_batch(self, points: Any, *sizes: Any) -> Any:
            calls.append(f"{len(points)} points")
            data = super()._process_batch(points, *sizes)
            data.filter(torch.arange(0, len(data["rles"]), 2))
            return data

    return Halves


def counting(package: Any, calls: list[str]) -> type[Any]:
    """A predictor whose methods note their calls."""

    class Counting(package.SamPredictor):  # type: ignore[misc]
        def set_image(self, image: Any, *rest: Any) -> None:
            calls.append(f"set {image.shape}")
            super().set_image(image, *rest)

        def predict_torch(self, coords: Any, labels: Any, *rest: Any, **options: Any) -> Any:
            calls.append(f"predict {tuple(coords.shape)} {coords.dtype} {labels.dtype} {options}")
            return super().predict_torch(coords, labels, *rest, **options)

        def reset_image(self) -> None:
            calls.append("reset")
            super().reset_image()

    return Counting


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert ours == theirs
    assert len(theirs) >= 5


def test_a_replaced_step_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "samfast")
    results, calls = [], []
    for package in (original, segment_anything):
        made: list[str] = []
        generator = halves(package, made)(BlobSam(), **CROPS)
        results.append(generator.generate(IMAGE))
        calls.append(made)
    assert calls[1] == calls[0]
    assert_same(results[1], results[0])
    assert "Halves._process_batch is another" in generator.describe()
    assert "one by one: Halves._process_batch is another" in caplog.text


@pytest.mark.parametrize("mode", ["binary_mask", "coco_rle"])
def test_a_replaced_predictor_is_called_in_the_originals_order(mode: str) -> None:
    results, calls = [], []
    for package in (original, segment_anything):
        made: list[str] = []
        generator = package.SamAutomaticMaskGenerator(BlobSam(), **{**CROPS, "output_mode": mode})
        generator.predictor = counting(package, made)(BlobSam())
        made.clear()
        results.append(generator.generate(IMAGE))
        calls.append(made)
    assert calls[1] == calls[0]
    assert len(calls[0]) == 20
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert np.array_equal(ours.pop("segmentation"), theirs.pop("segmentation"))
        assert ours == theirs
    assert "Counting.set_image is another" in generator.describe()


def test_a_predictor_of_another_class_is_called() -> None:
    class Predictor:
        """As of projects with a network of their own."""

        def __init__(self) -> None:
            self.inner = original.SamPredictor(BlobSam())
            self.transform, self.model = self.inner.transform, self.inner.model
            self.device = torch.device("cpu")

        def set_image(self, image: np.ndarray) -> None:
            self.inner.set_image(image)

        def predict_torch(self, *prompts: Any, **options: Any) -> Any:
            return self.inner.predict_torch(*prompts, **options)

        def reset_image(self) -> None:
            self.inner.reset_image()

    generator = segment_anything.SamAutomaticMaskGenerator(BlobSam(), **BLOBS)
    generator.predictor = Predictor()  # type: ignore[assignment]
    expected = original.SamAutomaticMaskGenerator(BlobSam(), **BLOBS).generate(IMAGE)
    assert_same(generator.generate(IMAGE), expected)
    assert "Predictor is no SamPredictor" in generator.describe()


def test_a_method_put_into_the_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    inner: Any = segment_anything.SamPredictor.predict_torch

    def counted(self: Any, *prompts: Any, **options: Any) -> Any:
        calls.append(options)
        return inner(self, *prompts, **options)

    monkeypatch.setattr(segment_anything.SamPredictor, "predict_torch", counted)
    generator = segment_anything.SamAutomaticMaskGenerator(small()[1], points_per_side=2)
    generator.generate(IMAGE)
    assert calls == [{"multimask_output": True, "return_logits": True}]


def test_a_subclass_that_replaces_no_step_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(segment_anything.SamAutomaticMaskGenerator):
        points_per_batch = 16

        def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
            return [{**record, "name": "mask"} for record in super().generate(image)]

    sam = small()[1]
    options = {**BLOBS, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    monkeypatch.setattr(samfast.SamFast, "segment", lambda *_, **__: [[{"area": 1}]])
    assert Named(sam, **options).generate(IMAGE) == [{"area": 1, "name": "mask"}]


def test_subclasses_that_do_not_call_the_constructor() -> None:
    results = []
    for package, sam in zip((original, segment_anything), small(), strict=True):

        class Predictor(package.SamPredictor):  # type: ignore[misc,name-defined]
            def __init__(self, model: Any, transform: Any) -> None:
                self.model, self.transform = model, transform
                self.is_image_set = False

        class Generator(package.SamAutomaticMaskGenerator):  # type: ignore[misc,name-defined]
            def __init__(self, predictor: Any, grid: np.ndarray) -> None:
                self.predictor, self.point_grids = predictor, [grid]
                self.pred_iou_thresh = self.stability_score_thresh = 0.0
                self.stability_score_offset = 1.0
                self.box_nms_thresh = self.crop_nms_thresh = 1.0
                self.crop_n_layers = self.min_mask_region_area = 0
                self.crop_overlap_ratio, self.points_per_batch = 0.3, 8
                self.output_mode = "uncompressed_rle"

        transform = package.utils.transforms.ResizeLongestSide(256)
        predictor = Predictor(sam, transform)
        predictor.set_image(IMAGE)
        low_res = predictor.predict(box=np.array([5, 5, 60, 50]))[2]
        records = Generator(predictor, np.array([[0.2, 0.3], [0.6, 0.7]])).generate(IMAGE)
        results.append((low_res, records))
    (expected, their_records), (low_res, records) = results
    assert relative_error(low_res, expected) <= 1e-4
    assert len(records) == len(their_records) == 6
    for ours, theirs in zip(records, their_records, strict=True):
        assert ours["predicted_iou"] == pytest.approx(theirs["predicted_iou"], rel=1e-4, abs=1e-5)


class Engines:
    """A model of engines that are no modules, as TensorRT's are."""

    mask_threshold = 0.0
    image_format = "RGB"
    device = torch.device("cpu")

    def __init__(self, sam: Any) -> None:
        self.sam = sam
        self.image_encoder = SimpleNamespace(img_size=256)
        self.image_encoder = type("Engine", (), {"img_size": 256, "__call__": self._encode})()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder
        self.preprocess, self.postprocess_masks = sam.preprocess, sam.postprocess_masks

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.sam.image_encoder(pixels)
        return features


def test_a_model_that_is_no_module() -> None:
    results = []
    for package, sam in zip((original, segment_anything), small(), strict=True):
        predictor = package.SamPredictor(Engines(sam))
        predictor.set_image(IMAGE)
        records = package.SamAutomaticMaskGenerator(
            Engines(sam), **{**BLOBS, "pred_iou_thresh": -1.0, "stability_score_thresh": 0.0}
        ).generate(IMAGE)
        results.append((predictor.predict(box=np.array([5, 5, 60, 50]))[2], len(records)))
    assert "Engines is no Sam" in predictor.describe()
    assert relative_error(results[1][0], results[0][0]) <= 1e-4
    assert results[1][1] == results[0][1] > 0


def predictors() -> tuple[Any, Any]:
    theirs, ours = small()
    both = original.SamPredictor(theirs), segment_anything.SamPredictor(ours)
    for predictor in both:
        predictor.set_image(IMAGE)
    return both


BOX = np.array([5.0, 5, 60, 50])


@pytest.mark.parametrize(
    "given",
    [
        # Label Studio gives labels of no points.
        {"point_coords": None, "point_labels": np.array([]), "box": BOX},
        {"point_coords": None, "point_labels": np.array([1]), "box": BOX},
        {"point_coords": np.zeros((0, 2)), "point_labels": np.zeros(0)},
        {
            "point_coords": np.array([[30, 40], [np.inf, np.nan]]),
            "point_labels": np.array([1, -1]),
        },
    ],
    ids=["no labels", "labels alone", "no points", "a token at infinity"],
)
def test_prompts_that_the_original_takes(given: dict[str, Any]) -> None:
    theirs, ours = predictors()
    for expected, result in zip(theirs.predict(**given), ours.predict(**given), strict=True):
        assert relative_error(result, expected) <= 1e-4


@pytest.mark.parametrize("point_is_at_infinity", [False, True])
@pytest.mark.parametrize("change", [False, True])
def test_one_point_set_with_three_masks(point_is_at_infinity: bool, change: bool) -> None:
    theirs, ours = predictors()
    if change:  # the modules decode then
        ours.model.mask_decoder.register_forward_hook(lambda *_: None)
    coords = torch.tensor([[[30.0, 40], [np.inf if point_is_at_infinity else 3, 5]]])
    arguments = coords, torch.tensor([[1, -1]]), None, torch.randn(3, 1, 64, 64)
    for expected, result in zip(
        theirs.predict_torch(*arguments, return_logits=True),
        ours.predict_torch(*arguments, return_logits=True),
        strict=True,
    ):
        assert result.shape == expected.shape
        assert len(result) == 3
        assert relative_error(result, expected) <= 1e-4


def test_features_of_several_images() -> None:
    """As micro-sam's wrapper for volumes sets them, without prompts."""
    theirs, ours = predictors()
    features = torch.randn(3, 64, 16, 16)
    for predictor in (theirs, ours):
        predictor.features = features
    for expected, result in zip(
        theirs.predict_torch(None, None), ours.predict_torch(None, None), strict=True
    ):
        assert result.shape == expected.shape
        assert len(result) == 3


def test_features_that_are_no_tensor_are_returned_as_they_are() -> None:
    ours = predictors()[1]
    ours.features = features = [torch.zeros(1), torch.ones(1)]
    assert ours.get_image_embedding() is features


def test_what_the_original_asserts_is_an_assertion_error() -> None:
    for predictor in predictors():
        for call in (
            lambda p: p.set_image(IMAGE, image_format="HSV"),
            lambda p: p.set_torch_image(torch.zeros(1, 3, 5, 6), (5, 6)),
            lambda p: p.predict(np.array([[1, 2]])),
            lambda p: [setattr(p, "features", None), p.get_image_embedding()],
        ):
            with pytest.raises(AssertionError):
                call(predictor)
    for package in (original, segment_anything):
        for options in ({"points_per_side": None}, {"output_mode": "png"}):
            with pytest.raises(AssertionError):
                package.SamAutomaticMaskGenerator(BlobSam(), **options)


def test_labels_without_any_prompt_are_refused() -> None:
    with pytest.raises(PromptError, match="without point_coords"):
        predictors()[1].predict(point_labels=np.array([1]))
    with pytest.raises(PromptError, match="NaN or infinite"):
        predictors()[1].predict(np.array([[np.inf, 2]]), np.array([1]))
