"""The channel's end beside the device: who gets masks, when the client has left meanwhile."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from samfast import coco_rle
from samfast.serve.click_requests import ROUTE
from samfast.serve.http_processes.click_frames import CLICK, DROP, FrameReader, answers_in, frame
from samfast.serve.http_processes.click_listener import ClickListener
from samfast.serve.mask_formats import rendered
from samfast.serve.messages import ObjectPrompt
from samfast.serve.service import SegmentationService
from tests.serve.running import picture, started, tiny_engine


class Stream:
    """A transport that keeps the answers that are written to it."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self.answers: dict[int, Any] = {}

    def write(self, data: bytes) -> None:
        for content in self._reader.feed(data):
            for answer in answers_in(content):
                assert answer.number not in self.answers
                self.answers[answer.number] = answer.status, json.loads(answer.body)


def message(*values: Any) -> bytes:
    return frame(json.dumps(values).encode())


def click(number: int, image: str, *points: list[float], multimask: bool = True) -> bytes:
    objects = [[[point], [1], None, None] for point in points]
    return message(CLICK, number, image, "someone", multimask, objects)


async def settled(service: SegmentationService, stream: Stream, count: int) -> None:
    while len(stream.answers) < count or b"samfast_open_requests 0.0" not in service.metrics.text():
        await asyncio.sleep(0.01)


def test_clicks_decoded_together_get_what_the_service_answers_each():
    async def work() -> None:
        async with started(tiny_engine(), batch_objects=64) as service:
            images = [(await service.add_image(picture(i, 90 + i))).id for i in range(3)]
            for image in images:
                await service.embed(image)
            stream, listener = Stream(), ClickListener(service)
            listener.connection_made(stream)  # type: ignore[arg-type]
            points = [[10.0, 20.0], [50.0, 30.0], [70.0, 5.0]]
            data = b"".join(
                click(i, images[i % 3], *points[: 1 + i % 3], multimask=i % 2 == 0)
                for i in range(12)
            )
            listener.data_received(data + click(12, "0" * 64, points[0]))
            listener.data_received(click(13, images[0], [900.0, 1.0]))
            await settled(service, stream, 14)
            for i in range(12):
                status, body = stream.answers[i]
                assert status == 200
                assert len(body["objects"]) == 1 + i % 3
                for each, point in zip(body["objects"], points, strict=False):
                    assert len(each["masks"]) == (3 if i % 2 == 0 else 1)
                    alone = await rendered_alone(service, images[i % 3], point, i % 2 == 0)
                    for mask, wanted in zip(each["masks"], alone, strict=True):
                        # Its logits are kept by its name, and are of its image.
                        logits = await service.low_res(mask["ref"], images[i % 3])
                        assert (float((logits > 0).sum()) > 0) == (mask["area"] > 0)
                        assert mask["predicted_iou"] == pytest.approx(
                            wanted["predicted_iou"], abs=1e-4
                        )
                        differing = coco_rle.decode(mask["segmentation"]) ^ coco_rle.decode(
                            wanted["segmentation"]
                        )
                        # The others of a batch may move a logit across the threshold.
                        assert differing.sum() <= 1
                        assert abs(mask["area"] - wanted["area"]) <= 1
                        assert mask["bbox"] == list(wanted["bbox"]) or differing.any()
            assert stream.answers[12][0] == 404
            assert stream.answers[13][0] == 422

    asyncio.run(asyncio.wait_for(work(), 60))


async def rendered_alone(
    service: SegmentationService, image: str, point: list[float], multimask: bool
) -> list[dict[str, Any]]:
    """The masks of one click without the channel."""
    prompt = ObjectPrompt(points=((point[0], point[1]),), labels=(1,))
    (answer,) = rendered(await service.predict(image, [prompt], multimask=multimask), "rle")
    return list(answer["masks"])


def test_a_click_whose_client_leaves_when_it_is_decoded_is_counted_once_and_not_sent():
    async def work() -> None:
        async with started(tiny_engine()) as service:
            image = (await service.add_image(picture(1))).id
            await service.embed(image)
            stream, listener = Stream(), ClickListener(service)
            listener.connection_made(stream)  # type: ignore[arg-type]
            listener.data_received(click(1, image, [10.0, 10.0]) + click(2, image, [20.0, 10.0]))
            while not listener._decoded:
                await asyncio.sleep(0)
            listener.data_received(message(DROP, 1) + message(DROP, 99))
            await settled(service, stream, 1)
            assert list(stream.answers) == [2]
            text = service.metrics.text().decode()
            for status in (200, 499):
                labels = f'route="{ROUTE}",status="{status}"'
                assert f"samfast_requests_total{{{labels}}} 1.0" in text

    asyncio.run(asyncio.wait_for(work(), 60))
