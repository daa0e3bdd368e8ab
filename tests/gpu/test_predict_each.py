"""A stream of prompts on a GPU: the answers of `predict` for the same batches, on the host."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from samfast import Prompts, outputs
from samfast.errors import PromptError
from tests.gpu.test_encoder_steps import photos, shared

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def asked(count):
    """Boxes and clicks of several numbers, one image after another."""
    kinds = [
        Prompts(boxes=[[3, 4, 16, 16]]),
        Prompts(points=[[[9, 9]], [[5, 6]]], labels=[[1], [1]]),
        Prompts(boxes=[[1, 0, 9, 9], [2, 2, 14, 15], [3, 4, 16, 16]]),
    ]
    return list(itertools.islice(itertools.cycle(kinds), count))


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("name", ["fused", "nested", "bf16_folded"])
def test_answers_are_those_of_predict_for_the_same_batches(name, multimask):
    sam = shared(name)
    images, prompts, step = photos(10), asked(10), sam.batch_size
    want = [
        masks.cpu()
        for start in range(0, 10, step)
        for masks in sam.predict(
            images[start : start + step], prompts[start : start + step], multimask=multimask
        )
    ]
    got = [*sam.predict_each(iter(images), iter(prompts), multimask=multimask)]
    assert all(masks.masks.is_cpu and masks.iou.is_cpu for masks in got)
    assert len(got) == 10 and all(a == b for a, b in zip(got, want, strict=True))
    records = [*sam.predict_each(images, prompts, multimask=multimask, output_mode="coco_rle")]
    for of_image, masks, prompt in zip(records, want, prompts, strict=True):
        stability = [record["stability_score"] for record in of_image]
        shaped = np.array(stability).reshape(masks.iou.shape)
        assert of_image == outputs.records_of(masks, shaped, prompt.points, best=False)


def test_a_wrong_prompt_is_named_after_the_answers_before_it():
    sam, got = shared("fused"), []
    prompts = [*asked(5), Prompts(boxes=[[400, 400, 500, 500]]), *asked(4)]
    with pytest.raises(PromptError, match=r"^image 5, object 0"):
        got.extend(sam.predict_each(photos(10), prompts))
    assert len(got) == 5


def test_memory_does_not_grow_with_the_stream():
    sam = shared("fused")
    image, prompt = photos(1)[0], asked(3)[2]
    stream = sam.predict_each(itertools.repeat(image), itertools.repeat(prompt))
    for _, _ in zip(range(40), stream, strict=False):
        pass
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    for _, _ in zip(range(200), stream, strict=False):
        pass
    stream.close()
    assert torch.cuda.max_memory_allocated() <= before + (64 << 20)
