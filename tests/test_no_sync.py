"""Nothing in embed and predict looks at a value on the device: on a GPU that would wait for it.

The meta device has shapes and no values, so whatever reads one fails there. On a GPU, tests/gpu
says the rest.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from samfast import Prompts
from samfast.recipes import RECIPES
from samfast.types import PromptBatch
from tests.model.tiny import TINY, fast, random_sam

SIDE = TINY.image_size // 4


@pytest.fixture(params=["looped", "nested", "packed"])
def sam(request):
    recipe = replace(RECIPES["fp32_sdpa"], prompts=request.param)
    return fast(random_sam(), recipe, device="meta", batch_size=2, fingerprint="none")


PROMPTS = {
    "clicks": Prompts(points=[[[5, 6]], [[10, 20], [30, 40]]], labels=[[1], [1, 0]]),
    "boxes": Prompts(boxes=[[3, 4, 50, 50], [10, 0, 60, 60]]),
    "both": Prompts(
        points=[[], [[20, 30]]], labels=[[], [0]], boxes=[[3, 4, 50, 50], [10, 0, 60, 60]]
    ),
    "masks": Prompts(masks=torch.empty(2, 1, SIDE, SIDE, device="meta")),
    "many": Prompts(points=np.full((70, 1, 2), 5.0), labels=np.ones((70, 1))),
}


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("multimask", [True, False])
def test_no_value_is_read(sam, kind, multimask):
    photos = [
        np.zeros((60, 80, 3), np.uint8),
        np.zeros((90, 64, 3), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
    ]
    embeddings = sam.embed(photos)
    assert embeddings.features.device.type == "meta"
    results = sam.predict(embeddings, [PROMPTS[kind]] * 3, multimask=multimask)
    assert [tuple(each.masks.shape[2:]) for each in results] == [(60, 80), (90, 64), (64, 64)]
    assert {each.masks.device.type for each in results} == {"meta"}


def test_no_value_of_prompts_on_the_device_is_read(sam):
    embeddings = sam.embed([np.zeros((60, 80, 3), np.uint8), np.zeros((90, 64, 3), np.uint8)])
    offsets = torch.empty(3, dtype=torch.int64, device="meta")
    for points in (1, 3):
        coords, labels = (
            torch.nested.nested_tensor_from_jagged(
                torch.empty(70, points, *last, device="meta"), offsets
            )
            for last in ((2,), ())
        )
        answer = sam.predict_batch(embeddings, coords, labels)
        assert answer.iou.values().shape == (70, 3) and answer.iou.device.type == "meta"
        assert answer.low_res.offsets() is offsets
    flat = torch.empty(70, 4, device="meta")
    masks = torch.empty(70, 1, SIDE, SIDE, device="meta")
    answer = sam.predict_batch(embeddings, PromptBatch(None, None, flat, masks, (0, 60, 70)))
    assert answer.low_res.values().shape == (70, 3, SIDE, SIDE)


def test_reading_a_value_raises(sam):
    results = sam.predict(sam.embed([np.zeros((60, 80, 3), np.uint8)]), [PROMPTS["boxes"]])
    with pytest.raises(RuntimeError):
        results[0].iou.max().item()
