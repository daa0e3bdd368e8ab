"""SegmentationService: batches of many callers, and what happens when one of them is bad."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import threading
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
import torch

from samfast import coco_rle
from samfast.engine import SamFast
from samfast.serve import device_tasks
from samfast.serve.batch_policy import Operation, Urgency
from samfast.serve.device_tasks import DeviceTasks, each_or_error
from samfast.serve.messages import ObjectAnswer, ObjectPrompt
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService
from samfast.types import Prompts
from tests.serve.running import picture, pixels_of, started, tiny_engine

CLICK = ObjectPrompt(points=((40.0, 30.0),), labels=(1,))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 120))


def alone(sam: SamFast, data: bytes, prompt: ObjectPrompt, multimask: bool) -> Any:
    """The engine's own answer to one object of one image."""
    prompts = Prompts(
        points=[prompt.points] if prompt.points else None,
        labels=[prompt.labels] if prompt.points else None,
        boxes=[prompt.box] if prompt.box else None,
    )
    return sam.predict([pixels_of(data)], [prompts], multimask=multimask)[0]


def assert_is(answer: ObjectAnswer, wanted: Any) -> None:
    """The answer has the engine's masks, all of them, and describes them rightly."""
    assert len(answer.masks) == wanted.masks.shape[1]
    for k, mask in enumerate(answer.masks):
        expected = wanted.masks[0, k].numpy()
        assert np.array_equal(mask.array(), expected)
        assert mask.area == expected.sum()
        assert list(mask.bbox) == coco_rle.bounding_box(coco_rle.encode(expected))
        assert mask.counts == coco_rle.encode(expected)["counts"]
        assert mask.predicted_iou == pytest.approx(float(wanted.iou[0, k]), abs=1e-5)


def sizes(service: SegmentationService, operation: str) -> list[tuple[float, float]]:
    """The buckets of the histogram of batches: jobs at most, batches."""
    text = service.metrics.text().decode()
    start = 'samfast_batch_jobs_bucket{le="'
    return [
        (float(line.split('"')[1]), float(line.split()[-1]))
        for line in text.splitlines()
        if line.startswith(start) and f'operation="{operation}"' in line
    ]


def test_each_of_many_concurrent_answers_is_the_engines_own():
    sam = tiny_engine()
    files = [picture(i, 60 + 7 * (i % 5), 50 + 9 * (i % 3)) for i in range(12)]
    draw = random.Random(0)
    asked = []
    for i in range(150):
        x, y = draw.uniform(0, 59), draw.uniform(0, 49)
        prompt = draw.choice(
            [
                ObjectPrompt(points=((x, y),), labels=(1,)),
                ObjectPrompt(points=((x, y), (y, x / 2)), labels=(1, 0)),
                ObjectPrompt(box=(x / 2, y / 2, x / 2 + 20, y / 2 + 20)),
                ObjectPrompt(points=((x, y),), labels=(0,), box=(1, 2, 50, 40)),
            ]
        )
        asked.append((i % 12, prompt, draw.random() < 0.7))

    async def work() -> list[Any]:
        async with started(sam, batch_objects=64) as service:
            images = [await service.add_image(data) for data in files]

            async def one(number: int, prompt: ObjectPrompt, multimask: bool) -> Any:
                (answer,) = await service.predict(
                    images[number].id, [prompt], multimask=multimask, client=str(number)
                )
                return answer

            answers = await asyncio.gather(*(one(*each) for each in asked))
            buckets = dict(sizes(service, "decode"))
            assert buckets[math.inf] <= len(asked) / 4, "batches of many callers were made"
            return list(answers)

    for (number, prompt, multimask), answer in zip(asked, run(work()), strict=True):
        assert_is(answer, alone(sam, files[number], prompt, multimask))


def test_objects_of_one_request_keep_their_order_and_mix_kinds():
    sam, data = tiny_engine(), picture(1)
    objects = [
        CLICK,
        ObjectPrompt(box=(5, 5, 60, 50)),
        ObjectPrompt(points=((10, 10), (20, 20)), labels=(1, 0)),
        ObjectPrompt(box=(1, 1, 30, 30), points=((8, 8),), labels=(1,)),
        CLICK,
    ]

    async def work() -> None:
        async with started(sam) as service:
            image = await service.add_image(data)
            answers = await service.predict(image.id, objects, multimask=False)
            for prompt, answer in zip(objects, answers, strict=True):
                assert_is(answer, alone(sam, data, prompt, False))

    run(work())


def test_an_earlier_mask_is_a_prompt_by_its_reference():
    sam, data = tiny_engine(), picture(2)

    async def work() -> None:
        async with started(sam) as service:
            image, other = await service.add_image(data), await service.add_image(picture(3))
            (first,) = await service.predict(image.id, [CLICK])
            ref = first.masks[1].ref
            again = dataclasses.replace(CLICK, mask=ref)
            (second,) = await service.predict(image.id, [again], multimask=False)
            own = sam.predict([pixels_of(data)], [Prompts(points=[[[40, 30]]], labels=[[1]])])[0]
            wanted = sam.predict(
                [pixels_of(data)],
                [Prompts(points=[[[40, 30]]], labels=[[1]], masks=own.low_res[:, 1:2])],
                multimask=False,
            )[0]
            assert_is(second, wanted)
            with pytest.raises(ProblemError) as foreign:
                await service.predict(other.id, [again])
            assert foreign.value.status == 404
            await service.remove(image.id)
            with pytest.raises(ProblemError) as gone:
                await service.predict(image.id, [again])
            assert gone.value.status == 404

    run(work())


def test_masks_beyond_their_bound_are_forgotten_oldest_first():
    async def work() -> None:
        async with started(tiny_engine(), mask_bytes=3 * 3 * 32 * 32 * 4) as service:
            image = await service.add_image(picture(4))
            answers = [(await service.predict(image.id, [CLICK]))[0] for _ in range(4)]
            with pytest.raises(ProblemError, match="not among the latest"):
                await service.predict(
                    image.id, [dataclasses.replace(CLICK, mask=answers[0].masks[0].ref)]
                )
            await service.predict(
                image.id, [dataclasses.replace(CLICK, mask=answers[3].masks[0].ref)]
            )

    run(work())


def test_waiting_images_are_encoded_together(monkeypatch):
    sam = tiny_engine(batch_size=4)
    batches: list[int] = []
    embed = sam.embed
    gate = threading.Event()

    def counted(images: Any, **options: Any) -> Any:
        gate.wait(20)
        batches.append(len(images))
        return embed(images, **options)

    async def work() -> None:
        async with started(sam) as service:
            monkeypatch.setattr(sam, "embed", counted)
            images = [await service.add_image(picture(i), client=str(i)) for i in range(9)]
            gate.set()
            for image in images:
                await service.predict(image.id, [CLICK])

    run(work())
    assert sum(batches) == 9
    assert max(batches) == 4


def test_the_same_image_is_encoded_once_however_many_ask(monkeypatch):
    sam = tiny_engine()
    count = 0
    embed = sam.embed

    def counted(images: Any, **options: Any) -> Any:
        nonlocal count
        count += len(images)
        return embed(images, **options)

    async def work() -> None:
        async with started(sam) as service:
            monkeypatch.setattr(sam, "embed", counted)
            data = picture(5)
            images = await asyncio.gather(*(service.add_image(data) for _ in range(20)))
            assert len({each.id for each in images}) == 1
            await asyncio.gather(*(service.predict(images[0].id, [CLICK]) for _ in range(20)))

    run(work())
    assert count == 1


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (ObjectPrompt(points=((5000.0, 3.0),), labels=(1,)), "outside the image"),
        (ObjectPrompt(points=((5.0, 3.0),), labels=()), "1 points and 0 labels"),
        (ObjectPrompt(points=((5.0, 3.0),), labels=(7,)), "label 7"),
        (ObjectPrompt(box=(30, 30, 10, 10)), "empty or inverted"),
        (ObjectPrompt(), "no prompts at all"),
    ],
)
def test_a_bad_prompt_fails_alone_and_is_named(prompt, words):
    sam, data = tiny_engine(), picture(6)

    async def work() -> None:
        async with started(sam) as service:
            image = await service.add_image(data)
            good = [service.predict(image.id, [CLICK], client=str(i)) for i in range(10)]
            bad = service.predict(image.id, [CLICK, prompt], client="bad")
            results: list[Any] = await asyncio.gather(*good, bad, return_exceptions=True)
            *answers, error = results
            assert isinstance(error, ProblemError)
            assert error.status == 422
            assert "object 1" in str(error)
            assert words in str(error)
            for (answer,) in answers:
                assert_is(answer, alone(sam, data, CLICK, True))

    run(work())


def test_an_image_that_is_none_fails_alone():
    async def work() -> None:
        async with started(tiny_engine()) as service:
            results = await asyncio.gather(
                *(service.add_image(picture(i)) for i in range(5)),
                service.add_image(b"not an image"),
                service.add_image(picture(1)[:200]),
                return_exceptions=True,
            )
            assert [getattr(each, "status", 201) for each in results] == [201] * 5 + [422] * 2

    run(work())


def test_one_request_that_breaks_the_engine_fails_alone(monkeypatch):
    sam, data = tiny_engine(), picture(7)
    predict = sam.predict_rle_batch

    def poisoned(embeddings: Any, prompts: Any, **options: Any) -> Any:
        if any(each.coords is not None and (each.labels == 0).any() for each in prompts):
            raise RuntimeError("a kernel failed")
        return predict(embeddings, prompts, **options)

    async def work() -> None:
        async with started(sam) as service:
            image = await service.add_image(data)
            await service.predict(image.id, [CLICK])
            monkeypatch.setattr(sam, "predict_rle_batch", poisoned)
            bad = ObjectPrompt(points=((13.0, 13.0),), labels=(0,))
            asked = [CLICK] * 6 + [bad] + [CLICK] * 6
            results: list[Any] = await asyncio.gather(
                *(service.predict(image.id, [each]) for each in asked), return_exceptions=True
            )
            failed = [i for i, each in enumerate(results) if isinstance(each, Exception)]
            assert failed == [6]
            assert isinstance(results[6], ProblemError)
            assert results[6].status == 500
            monkeypatch.setattr(sam, "predict_rle_batch", predict)
            for i in (0, 12):
                assert_is(results[i][0], alone(sam, data, CLICK, True))

    run(work())


def test_out_of_memory_halves_the_batch_and_not_the_service():
    tried: list[int] = []

    def work(items: Any) -> list[int]:
        tried.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if 5 in items and len(items) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * each for each in items]

    results = each_or_error(range(1, 17), work)
    assert results == [10 * each for each in range(1, 17)]
    assert tried == [16, 8, 4, 2, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2]
    (failed,) = each_or_error([5], work)
    assert isinstance(failed, torch.OutOfMemoryError)


def test_out_of_memory_of_one_request_is_503_with_retry_after(monkeypatch):
    sam = tiny_engine()

    def no_memory(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    async def work() -> None:
        async with started(sam) as service:
            image = await service.add_image(picture(8))
            await service.predict(image.id, [CLICK])
            with monkeypatch.context() as patched:
                patched.setattr(sam, "predict_rle_batch", no_memory)
                with pytest.raises(ProblemError) as error:
                    await service.predict(image.id, [CLICK])
                assert (error.value.status, error.value.code) == (503, "out_of_memory")
                assert error.value.retry_after
            await service.predict(image.id, [CLICK])

    run(work())


def test_a_device_that_is_lost_is_told_to_who_watches(monkeypatch):
    sam = tiny_engine()
    predict, fails = sam.predict_rle_batch, True

    def lost(*args: Any, **options: Any) -> Any:
        if fails:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return predict(*args, **options)

    async def work() -> None:
        nonlocal fails
        async with started(sam) as service:
            image = await service.add_image(picture(16))
            monkeypatch.setattr(sam, "predict_rle_batch", lost)
            for _ in range(7):
                with pytest.raises(ProblemError):
                    await service.predict(image.id, [CLICK])
            fails = False
            await service.predict(image.id, [CLICK])  # one success, and the count begins anew
            fails = True
            for _ in range(8):
                assert not service.failed
                with pytest.raises(ProblemError) as error:
                    await service.predict(image.id, [CLICK])
                assert error.value.status == 500
            assert service.failed
            with pytest.raises(ProblemError) as refused:
                await service.predict(image.id, [CLICK])
            assert refused.value.status == 503

    run(work())


def test_callers_that_leave_are_dropped_from_the_batch(monkeypatch):
    sam, data = tiny_engine(), picture(9)
    decoded: list[int] = []
    predict = sam.predict_rle_batch
    gate = threading.Event()

    def gated(embeddings: Any, prompts: Any, **options: Any) -> Any:
        gate.wait(20)
        decoded.append(sum(map(len, prompts)))
        return predict(embeddings, prompts, **options)

    async def work() -> None:
        async with started(sam) as service:
            image = await service.add_image(data)
            await service.predict(image.id, [CLICK])
            monkeypatch.setattr(sam, "predict_rle_batch", gated)
            asked = [asyncio.ensure_future(service.predict(image.id, [CLICK]))]
            await asyncio.sleep(0.2)  # it is at the gate
            asked += [asyncio.ensure_future(service.predict(image.id, [CLICK])) for _ in range(20)]
            await asyncio.sleep(0.05)
            for each in asked[1:16]:
                each.cancel()
            await asyncio.sleep(0.05)
            gate.set()
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert sum(isinstance(each, list) for each in results) == 6

    run(work())
    assert sum(decoded) == 6


def test_a_full_queue_is_429_with_retry_after_and_recovers(monkeypatch):
    sam = tiny_engine()
    predict = sam.predict_rle_batch
    gate = threading.Event()

    def gated(*args: Any, **options: Any) -> Any:
        gate.wait(20)
        return predict(*args, **options)

    async def work() -> None:
        async with started(sam, max_queued=10) as service:
            image = await service.add_image(picture(10))
            await service.predict(image.id, [CLICK])
            monkeypatch.setattr(sam, "predict_rle_batch", gated)
            asked = [asyncio.ensure_future(service.predict(image.id, [CLICK])) for _ in range(40)]
            await asyncio.sleep(0.3)
            gate.set()
            results = await asyncio.gather(*asked, return_exceptions=True)
            refused = [each for each in results if isinstance(each, Exception)]
            # Ten wait, and the batch that the device's thread took meanwhile had ten at most.
            assert 20 <= len(refused) <= 30
            assert all(
                isinstance(each, ProblemError) and each.status == 429 and each.retry_after
                for each in refused
            )
            await service.predict(image.id, [CLICK])

    run(work())


def test_a_click_overtakes_uploads_that_wait_and_everything_that_runs(monkeypatch):
    sam = tiny_engine()
    embed, order = sam.embed, []

    def slow(images: Any, **options: Any) -> Any:
        time.sleep(0.03)
        order.append("encode")
        return embed(images, **options)

    async def work() -> None:
        async with started(sam) as service:
            image = await service.add_image(picture(11))
            await service.predict(image.id, [CLICK])
            monkeypatch.setattr(sam, "embed", slow)
            for i in range(20):
                await service.add_image(picture(100 + i), client=str(i))
            await service.predict(image.id, [CLICK])
            assert len(order) < 15, "the click went before most uploads"
            records = service.segment(image.id, {"points_per_side": 8, "points_per_batch": 4})
            kinds = []
            async for line in records:
                kinds.append("done" in line)
                if len(kinds) == 2:
                    await service.predict(image.id, [CLICK])
                    assert sum(kinds) < 16, "the click did not wait for everything"
            assert kinds.count(True) == 16

    run(work())


def test_everything_is_the_engines_own_and_ends_when_its_caller_leaves():
    sam, data = tiny_engine(), picture(12)
    options = {
        "points_per_side": 6,
        "pred_iou_thresh": -10.0,
        "stability_score_thresh": 0.0,
    }

    async def work() -> None:
        async with started(sam) as service:
            image = await service.add_image(data)
            lines = [line async for line in service.segment(image.id, options)]
            records = [line for line in lines if "segmentation" in line]
            (wanted,) = sam.segment([pixels_of(data)], **options)
            assert records == list(wanted)
            assert records
            assert lines[0]["total"] == 36
            early = service.segment(image.id, {**options, "points_per_batch": 1})
            await anext(early)
            await early.aclose()
            await service.predict(image.id, [CLICK])
            queue = service.metrics.text().decode()
            assert 'samfast_queue_depth{operation="segment",urgency="bulk"} 0.0' in queue

    run(work())


def test_wrong_options_of_everything_are_the_callers_mistake():
    async def work() -> None:
        async with started(tiny_engine()) as service:
            image = await service.add_image(picture(13))
            with pytest.raises(ProblemError) as error:
                await anext(service.segment(image.id, {"pred_iou_thresh": "high"}))
            assert error.value.status == 422

    run(work())


def test_draining_answers_what_was_accepted_and_refuses_what_is_new(monkeypatch):
    sam, data = tiny_engine(), picture(14)
    predict = sam.predict_rle_batch

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return predict(*args, **options)

    async def work() -> None:
        service = SegmentationService(sam, started_settings(batch_objects=1))
        await service.start()
        image = await service.add_image(data)
        await service.predict(image.id, [CLICK])
        monkeypatch.setattr(sam, "predict_rle_batch", slow)
        asked = [asyncio.ensure_future(service.predict(image.id, [CLICK])) for _ in range(10)]
        await asyncio.sleep(0.02)
        ending = asyncio.ensure_future(service.drain())
        await asyncio.sleep(0)
        with pytest.raises(ProblemError) as error:
            await service.predict(image.id, [CLICK])
        assert error.value.status == 503
        assert not service.ready
        await ending
        assert all(isinstance(each, list) for each in await asyncio.gather(*asked))

    run(work())


def started_settings(**given: Any) -> Any:
    from samfast.serve.settings import Settings

    return Settings(**given)


def test_a_model_that_cannot_run_is_said_and_nothing_hangs(monkeypatch):
    sam = tiny_engine()

    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    async def work() -> None:
        monkeypatch.setattr(sam, "embed", broken)
        service = SegmentationService(sam, started_settings())
        with pytest.raises(RuntimeError):
            await service.start()
        assert service.failed
        assert not service.ready
        with pytest.raises(ProblemError) as error:
            await service.add_image(picture(15))
        assert error.value.code == "model_failed"
        await service.drain()

    run(work())


def test_an_image_beyond_the_bound_is_forgotten_and_a_click_says_so():
    async def work() -> None:
        files = [picture(20 + i) for i in range(4)]
        bound = sum(map(len, files[2:]))
        async with started(
            tiny_engine(), image_bytes=bound, device_bytes=1, host_bytes=1
        ) as service:
            images = [await service.add_image(data) for data in files]
            await asyncio.sleep(0.5)
            with pytest.raises(ProblemError) as error:
                await service.predict(images[0].id, [CLICK])
            assert error.value.status == 404
            # Its embedding is gone too, and is made again from the bytes.
            await service.predict(images[3].id, [CLICK])

    run(work())


def test_an_image_that_is_deleted_while_it_is_encoded_leaves_nothing(monkeypatch, tmp_path):
    sam = tiny_engine()
    embed, gate, inside = sam.embed, threading.Event(), threading.Event()

    def gated(images: Any, **options: Any) -> Any:
        inside.set()
        gate.wait(20)
        return embed(images, **options)

    async def work() -> None:
        async with started(sam, store=str(tmp_path)) as service:
            monkeypatch.setattr(sam, "embed", gated)
            image = await service.add_image(picture(17))
            await asyncio.to_thread(inside.wait, 20)
            await service.remove(image.id)
            gate.set()
            monkeypatch.setattr(sam, "embed", embed)
            other = await service.add_image(picture(18))
            await service.predict(other.id, [CLICK])
            with pytest.raises(ProblemError) as error:
                await service.predict(image.id, [CLICK])
            assert error.value.status == 404
        assert [path.stem for path in tmp_path.rglob("*.safetensors")] == [other.id]

    run(work())


def test_prewarm_embeds_paths_and_known_images_when_nobody_clicks(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(picture(30 + i))
    (tmp_path / "broken.png").write_bytes(b"nothing")

    async def work() -> None:
        async with started(tiny_engine(), root=tmp_path) as service:
            await service.prewarm(paths=[*(f"{i}.png" for i in range(6)), "broken.png", "no.png"])
            for _ in range(100):
                await asyncio.sleep(0.05)
                text = service.metrics.text().decode()
                if 'lookups_total{tier="encoded"} 6.0' in text and not service._prewarming:
                    break
            image = await service.add_path("3.png")
            before = dict(sizes(service, "encode"))
            await service.predict(image.id, [CLICK])
            assert dict(sizes(service, "encode")) == before, "it was embedded already"
            with pytest.raises(ProblemError):
                await service.prewarm(paths=["x"] * 10_001)

    run(work())


def test_clicks_promote_an_upload_that_waits(monkeypatch):
    sam = tiny_engine()
    embed, encoded = sam.embed, []

    def slow(images: Any, **options: Any) -> Any:
        time.sleep(0.02)
        encoded.append(len(images))
        return embed(images, **options)

    async def work() -> None:
        async with started(sam) as service:
            monkeypatch.setattr(sam, "embed", slow)
            images = [
                await service.add_image(picture(40 + i), client=str(i), urgency=Urgency.BULK)
                for i in range(30)
            ]
            await service.predict(images[29].id, [CLICK], client="29")
            assert len(encoded) < 25
            depth = service.metrics.text().decode()
            assert Operation.ENCODE.value in depth

    run(work())


@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_warm_up_goes_through_every_size_that_a_gpu_records(on_gpu, monkeypatch):
    sam: Any = tiny_engine()
    monkeypatch.setattr(SamFast, "batch_size", 3)
    monkeypatch.setattr(device_tasks, "works_beside_host", lambda device: on_gpu)
    embedded: list[int] = []
    decoded: list[tuple[int, bool]] = []
    embed, predict = sam.embed, sam.predict_rle_batch

    def count_images(images: Any, **more: Any) -> Any:
        embedded.append(len(images))
        return embed(images, **more)

    def count_objects(embeddings: Any, prompts: Any, *, multimask: bool = True) -> Any:
        decoded.append((len(embeddings), multimask))
        return predict(embeddings, prompts, multimask=multimask)

    monkeypatch.setattr(sam, "embed", count_images)
    monkeypatch.setattr(sam, "predict_rle_batch", count_objects)
    unused: Any = None
    tasks = DeviceTasks(sam, unused, unused, objects=6)
    tasks.warm_up()
    assert embedded == ([1, 2, 3] if on_gpu else [3])
    assert decoded == [
        *([(1, True), (2, True), (4, True), (6, True)] if on_gpu else [(1, True)]),
        (1, False),
    ]
    assert (
        tasks.feature_shape == sam.embed([torch.zeros(3, 90, 90, dtype=torch.uint8)]).features.shape
    )
