"""The drop-in predictor: the original's results, and errors that name the mistake."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from samfast.errors import ImageError, NumericsError, PromptError, SamfastError, UsageError
from samfast.recipes import RECIPES
from samfast.segment_anything.predictor import SamPredictor
from tests import oracle
from tests.model.tiny import fast, random_sam
from tests.pairs import pair, picture, relative_error, undecided

SIZES = [(32, 48), (48, 32), (256, 256), (100, 333), (427, 640), (700, 500), (2000, 3000)]
KINDS = [
    "point",
    "points",
    "box",
    "mask",
    "points+box",
    "points+mask",
    "box+mask",
    "points+box+mask",
    "none",
]


@pytest.fixture(scope="module")
def predictors():
    theirs, ours = pair()
    return oracle.load().SamPredictor(theirs), SamPredictor(ours)


def prompts(kind: str, size: tuple[int, int], seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    height, width = size
    count = 1 if kind == "point" else 4
    given: dict[str, np.ndarray] = {}
    if "point" in kind:
        given["point_coords"] = rng.uniform(0, 1, (count, 2)) * [width, height]
        given["point_labels"] = np.array([1, 0, 1, -1])[:count]
    if "box" in kind:
        corners = np.sort(rng.uniform(0, 1, (2, 2)), axis=0) * [width, height]
        given["box"] = corners.reshape(4)
    if "mask" in kind:
        given["mask_input"] = 6 * rng.standard_normal((1, 64, 64)).astype(np.float32)
    return given


@pytest.mark.parametrize("size", SIZES)
def test_answers_are_the_originals(predictors, size: tuple[int, int]) -> None:
    theirs, ours = predictors
    image = picture(*size)
    for predictor in predictors:
        predictor.set_image(image)
    assert relative_error(ours.get_image_embedding(), theirs.get_image_embedding()) <= 1e-5
    assert ours.original_size == theirs.original_size
    assert ours.input_size == theirs.input_size
    kinds = KINDS if max(size) < 1000 else ["points+box"]
    close = 0
    for kind in kinds:
        for multimask in (True, False):
            given = prompts(kind, size)
            expected = theirs.predict(**given, multimask_output=multimask)
            answer = ours.predict(**given, multimask_output=multimask)
            logits = theirs.predict(**given, multimask_output=multimask, return_logits=True)[0]
            our_logits = ours.predict(**given, multimask_output=multimask, return_logits=True)[0]
            assert answer[0].shape == (3 if multimask else 1, *size)
            assert [a.dtype for a in answer] == [bool, np.float32, np.float32]
            assert relative_error(our_logits, logits) <= 1e-4
            # Random weights give some IoU near 0, where float32 rounds by more than 1e-4 of it.
            np.testing.assert_allclose(answer[1], expected[1], rtol=1e-4, atol=1e-6)
            assert relative_error(answer[2], expected[2]) <= 1e-4
            open_pixels = undecided(logits)
            close += int(open_pixels.sum())
            assert np.array_equal(answer[0] | open_pixels, expected[0] | open_pixels)
            assert np.array_equal(answer[0], our_logits > 0)
    print(f"{size}: {close} pixels within 1e-4 of the threshold")
    assert close < 0.001 * 6 * len(kinds) * size[0] * size[1] + 5


def test_a_batch_of_objects(predictors) -> None:
    theirs, ours = predictors
    for predictor in predictors:
        predictor.set_image(picture(120, 200))
    generator = torch.Generator().manual_seed(0)
    coords = torch.rand(7, 3, 2, generator=generator) * 200
    labels = torch.randint(-1, 2, (7, 3), generator=generator)
    boxes = (torch.rand(7, 2, 2, generator=generator) * 200).sort(dim=1).values.flatten(1)
    masks = torch.randn(7, 1, 64, 64, generator=generator)
    for arguments in [
        (coords, labels),
        (None, None, boxes),
        (coords, labels, boxes),
        (coords, labels, boxes, masks),
        (coords, labels, None, masks[:1]),
    ]:
        expected, answer = theirs.predict_torch(*arguments), ours.predict_torch(*arguments)
        assert [a.shape for a in answer] == [e.shape for e in expected]
        assert relative_error(answer[1], expected[1]) <= 1e-4
        assert relative_error(answer[2], expected[2]) <= 1e-4
        logits = theirs.predict_torch(*arguments, return_logits=True)[0]
        open_pixels = torch.from_numpy(undecided(logits))
        assert torch.equal(answer[0] | open_pixels, expected[0] | open_pixels)


def test_bgr_is_reordered(predictors) -> None:
    theirs, ours = predictors
    image = picture(60, 80)
    ours.set_image(image)
    rgb = ours.get_image_embedding()
    for predictor in predictors:
        predictor.set_image(image[..., ::-1], image_format="BGR")
    assert torch.equal(ours.get_image_embedding(), rgb)
    assert relative_error(ours.get_image_embedding(), theirs.get_image_embedding()) <= 1e-5


def test_a_resized_tensor(predictors) -> None:
    for predictor in predictors:
        pixels = predictor.transform.apply_image(picture(60, 80))
        predictor.set_torch_image(torch.from_numpy(pixels).permute(2, 0, 1)[None], (60, 80))
    assert relative_error(predictors[1].features, predictors[0].features) <= 1e-5


def test_names_and_signatures(predictors) -> None:
    theirs, ours = predictors
    for name in (
        "set_image",
        "set_torch_image",
        "predict",
        "predict_torch",
        "get_image_embedding",
        "reset_image",
    ):
        our, their = (
            inspect.signature(getattr(kind, name)).parameters.values()
            for kind in (SamPredictor, type(theirs))
        )
        assert [(p.name, p.kind, p.default) for p in our] == [
            (p.name, p.kind, p.default) for p in their
        ]
    assert list(inspect.signature(SamPredictor).parameters) == ["sam_model"]
    theirs.set_image(picture(40, 40))
    ours.set_image(picture(40, 40))
    assert set(vars(theirs)) <= set(vars(ours))
    assert ours.device == torch.device("cpu")
    for predictor in predictors:
        predictor.reset_image()
        assert not predictor.is_image_set
        assert predictor.features is None


def test_results_outlive_the_next_image(predictors) -> None:
    ours = predictors[1]
    ours.set_image(picture(50, 60))
    masks, iou, low_res = ours.predict(box=np.array([5, 5, 30, 30]))
    before = masks.copy(), iou.copy(), low_res.copy()
    ours.set_image(picture(70, 40, seed=1))
    ours.predict(box=np.array([1, 1, 20, 20]))
    assert all(np.array_equal(a, b) for a, b in zip((masks, iou, low_res), before, strict=True))


def test_many_masks_are_upscaled_a_few_at_a_time(predictors, monkeypatch) -> None:
    from samfast.masks import upscale

    ours = predictors[1]
    ours.set_image(picture(90, 60))
    boxes = torch.rand(5, 2, 2).mul(200).sort(dim=1).values.flatten(1)
    whole = ours.predict_torch(None, None, boxes)[0]
    monkeypatch.setattr(upscale, "CPU_BUDGET", 1)
    assert torch.equal(ours.predict_torch(None, None, boxes)[0], whole)


def test_half_precision_answers_in_float32() -> None:
    _, model = pair()
    ours = SamPredictor(model)
    ours.set_image(picture(50, 60))
    single = ours.predict(box=np.array([5, 5, 30, 30]))
    model.to(torch.bfloat16)
    ours = SamPredictor(model)
    ours.set_image(picture(50, 60))
    assert ours.features is not None
    assert ours.features.dtype == torch.bfloat16
    answer = ours.predict(box=np.array([5, 5, 30, 30]))
    assert [a.dtype for a in answer] == [bool, np.float32, np.float32]
    logits = ours.predict(box=np.array([5, 5, 30, 30]), return_logits=True)[0]
    assert logits.dtype == np.float32
    assert relative_error(answer[2], single[2]) < 0.5


def test_before_an_image() -> None:
    ours = SamPredictor(pair()[1])
    for question in (
        ours.predict,
        ours.get_image_embedding,
        lambda: ours.predict_torch(None, None),
    ):
        with pytest.raises(UsageError, match="set_image") as caught:
            question()
        assert isinstance(caught.value, RuntimeError)
        assert isinstance(caught.value, SamfastError)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 6, 3)), "float64.*255"),
        (np.zeros((5, 6, 3), dtype=np.float32), "float32"),
        (np.zeros((5, 6, 3), dtype=np.uint16), "uint16"),
        (np.zeros((5, 6), dtype=np.uint8), "grey"),
        (np.zeros((5, 6, 1), dtype=np.uint8), "grey"),
        (np.zeros((5, 6, 4), dtype=np.uint8), "alpha"),
        (np.zeros((3, 50, 60), dtype=np.uint8), "transpose"),
        (np.zeros((5, 6, 7), dtype=np.uint8), r"\(5, 6, 7\)"),
        (np.zeros((0, 6, 3), dtype=np.uint8), "no pixels"),
        (np.zeros((1, 600, 3), dtype=np.uint8), "too long and thin"),
        ([[1, 2, 3]], "list"),
        (torch.zeros(5, 6, 3, dtype=torch.uint8), "Tensor"),
    ],
)
def test_bad_images(predictors, image, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        predictors[1].set_image(image)


def test_bad_image_format(predictors) -> None:
    with pytest.raises(ImageError, match="RGBA"):
        predictors[1].set_image(picture(8, 8), image_format="RGBA")


@pytest.mark.parametrize("shape", [(3, 256, 256), (1, 1, 256, 256), (1, 3, 255, 200)])
def test_bad_tensors(predictors, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="long side of 256"):
        predictors[1].set_torch_image(torch.zeros(shape), (10, 10))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"point_coords": [[1, 2]]}, "point_labels are missing"),
        ({"point_labels": [1]}, "without point_coords"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, r"shape \(1,\)"),
        ({"point_coords": [1, 2], "point_labels": [1]}, r"shape \(K, 2\)"),
        ({"point_coords": [[1, np.nan]], "point_labels": [1]}, "NaN"),
        ({"point_coords": [["x", "y"]], "point_labels": [1]}, "not an array of numbers"),
        ({"box": [1, 2, 3]}, "4 numbers XYXY"),
        ({"box": np.zeros((2, 4))}, "predict_torch"),
        ({"box": [1, 2, 3, np.inf]}, "infinite"),
    ],
)
def test_bad_prompts(predictors, given: dict, message: str) -> None:
    ours = predictors[1]
    ours.set_image(picture(20, 30))
    with pytest.raises(PromptError, match=message):
        ours.predict(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 1, 2), None), "missing"),
        ((torch.zeros(2, 2), torch.zeros(2)), r"\(P, K, 2\)"),
        ((torch.zeros(2, 1, 2), torch.zeros(2, 2)), r"shape \(2, 1\)"),
        ((None, None, torch.zeros(2, 3)), r"\(P, 4\)"),
        (
            (torch.zeros(2, 1, 2), torch.zeros(2, 1), torch.zeros(3, 4)),
            "point_coords for 2, boxes for 3",
        ),
    ],
)
def test_bad_batches(predictors, arguments: tuple, message: str) -> None:
    ours = predictors[1]
    ours.set_image(picture(20, 30))
    with pytest.raises(PromptError, match=message):
        ours.predict_torch(*arguments)


def test_a_box_may_have_a_batch_dimension(predictors) -> None:
    for predictor in predictors:
        predictor.set_image(picture(40, 60))
    box = np.array([[3, 4, 30, 20]])
    assert (
        relative_error(predictors[1].predict(box=box)[2], predictors[0].predict(box=box)[2]) <= 1e-4
    )


@pytest.mark.parametrize("fast_model", [False, True], ids=["plain modules", "SamFast"])
def test_a_non_finite_answer_raises_instead_of_empty_masks(fast_model: bool) -> None:
    model = random_sam()
    with torch.no_grad():
        model.mask_decoder.mask_tokens.weight[0, 0] = float("nan")
    sam = fast(model, RECIPES["fp32_sdpa"]) if fast_model else model
    predictor = SamPredictor(sam)
    predictor.set_image(picture(60, 80))
    with pytest.raises(NumericsError, match=r"object 0.*: the answer holds NaN"):
        predictor.predict(np.array([[30, 20]]), np.array([1]))
    boxes = torch.tensor([[3.0, 4, 50, 50]])
    for return_logits in (False, True):
        with pytest.raises(NumericsError):
            predictor.predict_torch(None, None, boxes, return_logits=return_logits)


def test_a_mask_prompt_with_nan_is_said() -> None:
    predictor = SamPredictor(random_sam())
    predictor.set_image(picture(60, 80))
    logits = np.full((1, 32, 32), np.nan, np.float32)
    with pytest.raises(NumericsError, match="so does its mask prompt"):
        predictor.predict(box=np.array([3, 4, 50, 50]), mask_input=logits)
