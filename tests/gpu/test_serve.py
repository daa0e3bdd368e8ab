"""The server on a GPU: batches of many callers, tiers of embeddings, and what /metrics tells."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

import samfast
from samfast.masks import upscale
from samfast.outputs.embeddings import embeddings_from_bytes
from samfast.serve.messages import ObjectPrompt
from samfast.types import Embeddings, Prompts
from tests.prompted_masks.test_rle_masks import assert_rle_is_that_of_the_masks
from tests.serve.running import picture, pixels_of, started

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

BF16_ROUNDING = 0.02
"""Of a logit, as a share of a mask's largest one: numbers of bfloat16 have eight bits, and some
fifty roundings follow each other."""

CLICK = ObjectPrompt(points=((40.0, 30.0),), labels=(1,))


@pytest.fixture(scope="module")
def sam() -> samfast.SamFast:
    return samfast.load("vit_xs", device="cuda", recipe="fused", batch_size=4)


def test_concurrent_answers_are_the_engines_own(sam):
    files = [picture(i, 300 + i, 200 + 2 * i) for i in range(12)]

    embeddings: list[Embeddings] = []

    async def work() -> list[Any]:
        async with started(sam) as service:
            images = [await service.add_image(data) for data in files]
            asked = [service.predict(images[i % 12].id, [CLICK], client=str(i)) for i in range(96)]
            answers = await asyncio.gather(*asked)
            for image in images:
                held = await service.embedding_bytes(image.id)
                embeddings.append(embeddings_from_bytes(held, "held").to(sam.device))
            text = service.metrics.text().decode()
            assert 'samfast_device_memory_bytes{kind="allocated"}' in text
            return list(answers)

    answers = asyncio.run(asyncio.wait_for(work(), 120))
    # Of the service's own embeddings: images that are encoded beside others differ in the last bits
    # of bfloat16, and in pictures of random blocks these move the borders of doubtful masks.
    prompt = Prompts(points=[[[40.0, 30.0]]], labels=[[1]])
    wanted = []
    for embedding in embeddings:
        low_res = sam.predict(embedding, [prompt])[0].low_res
        sizes = embedding.input_sizes[0], embedding.original_sizes[0]
        wanted.append(upscale.logits(low_res, *sizes, 1024)[0].cpu().numpy())
    for i, (answer,) in enumerate(answers):
        for mask, logits in zip(answer.masks, wanted[i % 12], strict=True):
            # So does the composition of a batch that is decoded: in pixels whose logits are within
            # rounding of the threshold, and in no others.
            differing = np.abs(logits[mask.array() ^ (logits > 0)])
            assert differing.max(initial=0) <= BF16_ROUNDING * np.abs(logits).max()


def test_masks_of_many_sizes_are_encoded_as_each_alone():
    assert_rle_is_that_of_the_masks("cuda")


def test_what_the_gpu_drops_the_host_and_the_store_have(sam, tmp_path):
    one = sam.embed([pixels_of(picture(0))]).features.nbytes

    async def work() -> None:
        async with started(
            sam, device_bytes=2 * one, host_bytes=2 * one, store=str(tmp_path)
        ) as service:
            images = [await service.add_image(picture(i)) for i in range(6)]
            for _ in range(2):
                for image in images:
                    await service.predict(image.id, [CLICK])
            assert service._cache.tier_bytes()["device"] <= 2 * one
            assert service._cache.tier_bytes()["host"] <= 2 * one
            held = await service.embedding_bytes(images[0].id)
            assert len(held) > one
        assert len(list(tmp_path.rglob("*.safetensors"))) == 6

    asyncio.run(asyncio.wait_for(work(), 120))


def test_memory_that_does_not_suffice_halves_the_batch(sam, monkeypatch):
    predict, sizes = sam.predict_rle_batch, []

    def limited(embeddings: Any, prompts: Any, **options: Any) -> Any:
        sizes.append(sum(map(len, prompts)))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(embeddings, prompts, **options)

    async def work() -> None:
        async with started(sam) as service:
            images = [await service.add_image(picture(i)) for i in range(12)]
            for image in images:
                await service.predict(image.id, [CLICK])
            monkeypatch.setattr(sam, "predict_rle_batch", limited)
            answers = await asyncio.gather(
                *(service.predict(image.id, [CLICK], client=image.id) for image in images)
            )
            assert len(answers) == 12

    asyncio.run(asyncio.wait_for(work(), 120))
    assert max(sizes) > 4
