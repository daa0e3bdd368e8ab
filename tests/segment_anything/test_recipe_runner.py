"""The drop-in on a SamFast: its recipe decodes, and where it cannot, the plain modules do."""

from __future__ import annotations

import copy
import itertools
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import samfast
from samfast.engine import SamFast
from samfast.provenance import Provenance
from samfast.recipes import Recipe, apply
from samfast.segment_anything import SamAutomaticMaskGenerator, SamPredictor
from samfast.types import Embeddings, Prompts
from tests import oracle
from tests.pairs import SMALL, pair, picture, relative_error

FP32 = Recipe()
BF16 = Recipe(dtype=torch.bfloat16)
RECIPES = {
    "fp32 looped": FP32,
    "fp32 packed": replace(FP32, prompts="packed"),
    "fp32 fused": replace(FP32, prompts="packed", fuse=True),
    "bf16 looped": BF16,
    "bf16 nested": replace(BF16, prompts="nested"),
    "bf16 packed": replace(BF16, prompts="packed"),
    "bf16 fused": replace(BF16, prompts="packed", fuse=True),
}
IMAGE = picture(120, 200)
POINTS = np.array([[30.0, 40], [150, 70], [99, 12]])
LABELS = np.array([1, 0, -1])
BOX = np.array([20.0, 10, 160, 90])
MASK = 4 * np.random.default_rng(0).standard_normal((1, 64, 64)).astype(np.float32)
KINDS: dict[str, dict[str, Any]] = {
    "point": {"point_coords": POINTS[:1], "point_labels": LABELS[:1]},
    "points": {"point_coords": POINTS, "point_labels": LABELS},
    "box": {"box": BOX},
    "points, box": {"point_coords": POINTS, "point_labels": LABELS, "box": BOX},
    "points, mask": {"point_coords": POINTS, "point_labels": LABELS, "mask_input": MASK},
    "points, box, mask": {
        "point_coords": POINTS,
        "point_labels": LABELS,
        "box": BOX,
        "mask_input": MASK,
    },
}


def samfast_of(recipe: Recipe) -> SamFast:
    _, model = pair()
    return SamFast(model, apply(model, recipe, torch.device("cpu")), Provenance(SMALL.name))


@pytest.fixture(scope="module", params=RECIPES)
def sam(request: pytest.FixtureRequest) -> SamFast:
    return samfast_of(RECIPES[request.param])


def of_one_object(given: dict[str, Any]) -> Prompts:
    names = {"point_coords": "points", "point_labels": "labels", "box": "boxes"}
    arrays = {names.get(name, "masks"): value[None] for name, value in given.items()}
    return Prompts(**arrays)


@pytest.fixture(scope="module")
def predictor(sam: SamFast) -> SamPredictor:
    """A predictor on the SamFast, with IMAGE."""
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    return predictor


@pytest.fixture(scope="module")
def embeddings(sam: SamFast) -> Embeddings:
    return sam.embed([IMAGE])


@pytest.mark.parametrize("multimask", [True, False])
def test_predict_equals_samfast_bit_for_bit(
    sam: SamFast,
    predictor: SamPredictor,
    embeddings: Embeddings,
    multimask: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "samfast")
    for kind, given in KINDS.items():
        masks, iou, low_res = predictor.predict(**given, multimask_output=multimask)
        prompts = [of_one_object(given)]
        expected = sam.predict(embeddings, prompts, multimask=multimask)[0].cpu()
        assert [each.dtype for each in (masks, iou, low_res)] == [bool, np.float32, np.float32]
        assert np.array_equal(low_res, expected.low_res[0].numpy()), kind
        assert np.array_equal(iou, expected.iou[0].numpy()), kind
        assert np.array_equal(masks, expected.masks[0].numpy()), kind
    assert "samfast" not in [record.name for record in caplog.records]


@pytest.mark.parametrize("multimask", [True, False])
def test_a_batch_of_boxes_equals_samfast_bit_for_bit(
    sam: SamFast, predictor: SamPredictor, embeddings: Embeddings, multimask: bool
) -> None:
    corners = np.random.default_rng(1).uniform(0, 1, (7, 2, 2)) * [200, 120]
    boxes = np.sort(corners, axis=1).reshape(7, 4)
    arguments = None, None, torch.from_numpy(predictor.transform.apply_boxes(boxes, (120, 200)))
    masks, iou, low_res = predictor.predict_torch(*arguments, multimask_output=multimask)
    expected = sam.predict(embeddings, [Prompts(boxes=boxes)], multimask=multimask)[0].cpu()
    assert torch.equal(low_res, expected.low_res)
    assert torch.equal(iou, expected.iou)
    assert torch.equal(masks, expected.masks)
    logits, *_ = predictor.predict_torch(*arguments, multimask_output=multimask, return_logits=True)
    assert logits.dtype == torch.float32
    assert torch.equal(logits > 0, masks)


@pytest.mark.parametrize("name", ["fp32 looped", "fp32 packed", "fp32 fused"])
def test_float32_recipes_give_the_originals_results(name: str) -> None:
    theirs, _ = pair()
    original, ours = oracle.load().SamPredictor(theirs), SamPredictor(samfast_of(RECIPES[name]))
    for predictor in (original, ours):
        predictor.set_image(IMAGE)
    for kind, multimask in itertools.product(KINDS, (True, False)):
        given = {**KINDS[kind], "multimask_output": multimask, "return_logits": True}
        for expected, result in zip(original.predict(**given), ours.predict(**given), strict=True):
            assert result.shape == expected.shape
            assert relative_error(result, expected) <= 1e-4, kind


def test_masks_of_one_object_serve_all_and_unknown_labels_add_nothing() -> None:
    """As in the original: one mask prompt for P objects, and labels other than 1, 0 and -1."""
    theirs, _ = pair()
    results = []
    labels = torch.tensor([[1, 2], [-10, 0], [3, -1]])
    coords = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0)) * 200
    sam = samfast_of(RECIPES["fp32 fused"])
    for predictor in (oracle.load().SamPredictor(theirs), SamPredictor(sam)):
        predictor.set_image(IMAGE)
        results.append(predictor.predict_torch(coords, labels, None, torch.from_numpy(MASK)[None]))
    for expected, result in zip(*results, strict=True):
        assert relative_error(result.float(), expected.float()) <= 1e-3


def test_overwritten_features_are_decoded() -> None:
    sam = samfast_of(RECIPES["bf16 packed"])
    predictor = SamPredictor(sam)
    predictor.set_image(picture(120, 200, seed=1))
    other = predictor.predict(box=BOX)[2]
    predictor.features = sam.embed([IMAGE]).features
    expected = sam.predict(sam.embed([IMAGE]), [Prompts(boxes=BOX[None])])[0]
    low_res = predictor.predict(box=BOX)[2]
    assert np.array_equal(low_res, expected.low_res[0].numpy())
    assert not np.array_equal(low_res, other)


def plain_result(model: Any, features: torch.Tensor | None = None) -> Any:
    predictor = SamPredictor(model)
    predictor.set_image(IMAGE)
    if features is not None:
        predictor.features = features
    return predictor.predict(box=BOX)


def hook(sam: SamFast) -> None:
    sam.model.mask_decoder.transformer.register_forward_hook(lambda *_: None)


def replace_decoder(sam: SamFast) -> None:
    sam.model.mask_decoder = copy.deepcopy(sam.model.mask_decoder)


def replace_layer(sam: SamFast) -> None:
    layer: Any = sam.model.mask_decoder.iou_prediction_head.layers[2]
    sam.model.mask_decoder.iou_prediction_head.layers[2] = copy.deepcopy(layer)


def replace_forward(sam: SamFast) -> None:
    encoder: Any = sam.model.prompt_encoder
    encoder.forward = encoder.forward


@pytest.mark.parametrize(
    ("change", "before"),
    [(hook, True), (replace_decoder, True), (replace_layer, False), (replace_forward, False)],
)
def test_changed_modules_are_called_and_logged_once(
    change: Any, before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "samfast")
    sam = samfast_of(RECIPES["bf16 fused"])
    if before:
        change(sam)
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    if not before:
        change(sam)
    results = [predictor.predict(box=BOX) for _ in range(2)]
    logged = [record for record in caplog.records if record.name == "samfast"]
    assert [record.levelname for record in logged] == ["INFO"]
    assert "was replaced or hooked" in caplog.text
    for result in results:
        for ours, plain in zip(result, plain_result(sam.model, predictor.features), strict=True):
            assert np.array_equal(ours, plain)


def test_gradients_flow_where_they_are_enabled(caplog: pytest.LogCaptureFixture) -> None:
    predictor = SamPredictor(samfast_of(RECIPES["fp32 fused"]))
    predictor.set_image(IMAGE)
    boxes = torch.from_numpy(BOX)[None].float()
    assert not predictor.predict_torch(None, None, boxes)[2].requires_grad
    with caplog.at_level(logging.INFO, "samfast"):
        with_gradients: Any = SamPredictor.predict_torch
        masks, _, low_res = with_gradients.__wrapped__(predictor, None, None, boxes)
    assert "gradients are enabled" in caplog.text
    assert masks.dtype == torch.bool
    low_res.square().mean().backward()
    assert predictor.model.mask_decoder.iou_token.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((None, None), "no prompts"),
        ((torch.zeros(2, 0, 2), torch.zeros(2, 0)), "objects without points"),
    ],
)
def test_prompts_that_samfast_does_not_take_are_decoded_by_the_plain_modules(
    arguments: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, _ = pair()
    original = oracle.load().SamPredictor(theirs)
    ours = SamPredictor(samfast_of(RECIPES["fp32 packed"]))
    for predictor in (original, ours):
        predictor.set_image(IMAGE)
    with caplog.at_level(logging.INFO, "samfast"):
        result = ours.predict_torch(*arguments)
    assert reason in caplog.text
    assert relative_error(result[2], original.predict_torch(*arguments)[2]) <= 1e-4


def test_another_model_in_place_of_the_samfasts_is_used() -> None:
    predictor = SamPredictor(samfast_of(RECIPES["bf16 fused"]))
    _, other = pair(seed=1)
    predictor.model = other
    predictor.set_image(IMAGE)
    for ours, plain in zip(predictor.predict(box=BOX), plain_result(other), strict=True):
        assert np.array_equal(ours, plain)


OPTIONS: dict[str, Any] = {
    "points_per_side": 4,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "crop_nms_thresh": 1.0,
    "crop_n_layers": 1,
    "output_mode": "uncompressed_rle",
}


def test_the_generators_records_are_those_of_segment(
    sam: SamFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = SamAutomaticMaskGenerator(sam, **OPTIONS)
    slow = "samfast.segment_anything.automatic_mask_generator.generate"
    monkeypatch.setattr(slow, lambda *_: pytest.fail("not through segment"))
    assert generator.describe() == sam.describe()
    assert generator.generate(IMAGE) == sam.segment([IMAGE], **OPTIONS)[0]
    generator.points_per_batch = 5
    generator.output_mode = "coco_rle"
    changed = {**OPTIONS, "output_mode": "coco_rle", "points_per_batch": 5}
    records = generator.generate(IMAGE)
    assert len(records) > 5
    assert records == sam.segment([IMAGE], **changed)[0]


def test_a_generator_with_a_replaced_step_calls_it() -> None:
    sam = samfast_of(RECIPES["fp32 packed"])
    generator = SamAutomaticMaskGenerator(sam, **OPTIONS)
    called = []
    set_image = generator.predictor.set_image

    def counted(image: Any) -> None:
        called.append(image.shape)
        set_image(image)

    generator.predictor.set_image = counted  # type: ignore[method-assign,assignment]
    records = generator.generate(IMAGE)
    assert len(called) == 5
    expected = sam.segment([IMAGE], **OPTIONS)[0]
    assert [record["bbox"] for record in records] == [record["bbox"] for record in expected]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_on_a_gpu_predict_equals_samfast(fuse: bool, graph: bool) -> None:
    recipe = replace(BF16, attention="folded", prompts="packed", fuse=fuse, graph=graph)
    sam = samfast.load("vit_xs", device="cuda", recipe=recipe)
    embeddings = sam.embed([IMAGE])
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    assert predictor.features is not None
    assert relative_error(predictor.features.cpu(), embeddings.features.cpu()) <= 1e-2
    predictor.features = embeddings.features
    mask = np.zeros((1, 256, 256), np.float32)
    for given, multimask in itertools.product(KINDS.values(), (True, False)):
        if "mask_input" in given:
            given = {**given, "mask_input": mask}
        masks, iou, low_res = predictor.predict(**given, multimask_output=multimask)
        expected = sam.predict(embeddings, [of_one_object(given)], multimask=multimask)[0].cpu()
        assert np.array_equal(low_res, expected.low_res[0].numpy())
        assert np.array_equal(iou, expected.iou[0].numpy())
        assert np.array_equal(masks, expected.masks[0].numpy())
        plain = SamPredictor(sam.model)
        plain.set_image(IMAGE)
        assert relative_error(low_res, plain.predict(**given, multimask_output=multimask)[2]) < 0.1
    boxes = torch.tensor([[10.0, 20, 500, 300], [100, 50, 900, 600]], device="cuda")
    on_device = predictor.predict_torch(None, None, boxes)
    on_host = predictor.predict_torch(None, None, boxes.cpu())
    assert relative_error(on_device[2].cpu(), on_host[2].cpu()) <= 2e-2
