from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from samfast.bench import parity
from samfast.bench.parity import judge, relative_error
from samfast.bench.samples import images, objects, prompts
from samfast.recipes import RECIPES, Recipe

BF16 = Recipe(dtype=torch.bfloat16)
HALF = {"features": 0.003, "low_res": 0.004, "iou": 0.01}


def test_relative_error():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])) == 0
    assert relative_error(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])) == 1
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_fp32_is_held_to_its_own_tolerance():
    assert judge(Recipe(), {"features": 1e-6, "iou": 9e-5}, None) is None
    wrong = judge(Recipe(), {"features": 1e-6, "iou": 2e-4}, None)
    assert wrong is not None and wrong.startswith("wrong: relative error 2.0e-04, at most 1.0e-04")


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        (HALF, None),
        ({**HALF, "iou": 0.0199}, None),
        ({**HALF, "low_res": 0.019}, None),  # noisy: within twice the largest
        ({**HALF, "iou": 0.021}, "relative error 2.1e-02, at most 2.0e-02"),
        ({**HALF, "features": 0.0061}, "features' relative error 6.1e-03, at most 6.0e-03"),
        ({**HALF, "features": math.nan}, "nan"),
    ],
)
def test_half_precision_is_held_to_twice_the_plain_model_s_error(errors, words):
    verdict = judge(BF16, errors, HALF)
    assert verdict is None if words is None else words in verdict
    if words is not None and words != "nan":
        assert "2 times the error of the plain model in bfloat16" in verdict


def test_without_a_plain_model_half_precision_is_held_to_its_tolerance():
    assert judge(BF16, {"features": 0.19}, None) is None
    assert judge(BF16, {"features": 0.21}, None) is not None
    assert judge(replace(BF16, dtype=torch.float16), {"features": 0.06}, None) is not None


@pytest.mark.parametrize(
    ("name", "bound"), [("fp8", 0.3), ("int8", 0.3), ("2:4", 1.2), ("int8_2:4", 1.2)]
)
def test_lossy_recipes_are_judged_by_their_features(name, bound):
    loose = {"features": bound - 0.01, "low_res": 9.0, "iou": 9.0}
    assert judge(RECIPES[name], loose, HALF) is None
    assert judge(RECIPES[name], {**loose, "features": bound + 0.01}, HALF) is not None
    assert judge(RECIPES[name], {**loose, "features": math.nan}, HALF) is not None


def test_a_rival_is_held_to_its_dtype():
    assert parity.judge_rival(torch.bfloat16, 0.19) is None
    assert parity.judge_rival(torch.float32, 2e-4) is not None


def test_few_samples_begin_many():
    for few, many in zip(images(2), images(3), strict=False):
        assert (few.pixels == many.pixels).all()
    for asked, more in zip(prompts(2), prompts(3), strict=False):
        assert (asked.points == more.points).all()
    assert len(prompts(3)) == 3
    assert objects(18)[16:] == objects(2)
