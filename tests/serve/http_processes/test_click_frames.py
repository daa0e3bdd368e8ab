"""Frames come out of a stream as they went in, however the stream is cut."""

from __future__ import annotations

import asyncio
import dataclasses
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from samfast.serve.api_models import PredictModel
from samfast.serve.http_processes.click_client import COMPANY_SECONDS, ClickClient
from samfast.serve.http_processes.click_frames import (
    MASKS,
    Answer,
    FrameReader,
    FrameWriter,
    Setup,
    answers_in,
    frame,
)
from samfast.serve.http_processes.clicked_masks import ClickedMasks
from samfast.serve.mask_formats import rle_json
from samfast.serve.messages import MaskAnswer, ObjectAnswer
from samfast.serve.settings import Settings


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(0, 2000)))
def test_a_cut_stream_gives_the_same_frames(contents, cuts):
    stream = b"".join(map(frame, contents))
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    reader = FrameReader()
    seen = [
        content for start, end in pairwise(places) for content in reader.feed(stream[start:end])
    ]
    assert seen == contents
    assert reader.feed(b"") == []


@given(st.integers(0, 2**32 - 1), st.integers(100, 599), st.integers(0, 9999), st.binary())
def test_an_answer_is_read_as_it_was_written(number, status, retry_after, body):
    answer = Answer(number, status, retry_after, body)
    assert list(answers_in(answer.to_bytes())) == [answer]


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 3)), max_size=5),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_masks_become_the_json_that_the_other_process_would_write(clicks, each, draw):
    rows = sum(count for _, count in clicks)
    sizes = [(draw.randint(1, 5000), draw.randint(1, 5000)) for _ in range(rows)]
    masks = [
        MaskAnswer(
            "".join(chr(draw.randint(48, 111)) for _ in range(draw.randint(0, 9))),
            sizes[row],
            float(np.float32(draw.uniform(-1, 2))),
            draw.randint(0, 2**31 - 1),
            (draw.randint(0, 9), draw.randint(0, 9), draw.randint(0, 9), draw.randint(0, 9)),
            f"abc-{10 + row}.{k}",
        )
        for row in range(rows)
        for k in range(each)
    ]
    content = ClickedMasks(
        "abc",
        each,
        [number for number, _ in clicks],
        [count for _, count in clicks],
        range(10, 10 + rows),
        [pixels for size in sizes for pixels in size],
        np.array([mask.predicted_iou for mask in masks], np.float32).tobytes(),
        np.array([mask.area for mask in masks], np.int32).tobytes(),
        np.array([mask.bbox for mask in masks], np.int32).tobytes(),
        [mask.counts for mask in masks],
    )
    left = iter(masks)
    wanted = [
        Answer(
            number,
            200,
            0,
            rle_json([ObjectAnswer(tuple(islice(left, each))) for _ in range(count)]),
        )
        for number, count in clicks
    ]
    assert list(answers_in(content.to_bytes(MASKS))) == wanted
    again = ClickedMasks.from_bytes(content.to_bytes(MASKS))
    assert all(list(a) == list(b) for a, b in zip(again[2:], content[2:], strict=True))
    assert again[:2] == content[:2]


def test_every_setting_reaches_the_other_process():
    settings = Settings(
        host="0.0.0.0", root=Path("/photos"), token="a long secret", wires=("cvat", "roboflow")
    )
    for each in (settings, dataclasses.replace(Settings(), max_requests=3)):
        setup = Setup("/tmp/a/http", ("/", "/docs"), 30, each)
        assert Setup.from_json(setup.to_json()) == setup


def test_frames_that_wait_for_company_are_written_at_once_and_a_lone_one_soon():
    class Stream:
        def __init__(self) -> None:
            self.writes: list[bytes] = []

        def write(self, data: bytes) -> None:
            self.writes.append(data)

    async def work() -> None:
        stream, writer = Stream(), FrameWriter()
        writer.connect(stream)  # type: ignore[arg-type]
        writer.write(b"alone")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stream.writes == [frame(b"alone")]
        writer.write(b"first", 0.03)
        await asyncio.sleep(0.001)
        writer.write(b"second")
        assert len(stream.writes) == 1
        await asyncio.sleep(0.2)
        assert stream.writes[1:] == [frame(b"first") + frame(b"second")]

    asyncio.run(work())


def test_only_clicks_beside_others_wait_for_company():
    class Writer(FrameWriter):
        def __init__(self) -> None:
            super().__init__()
            self.given: list[float] = []

        def write(self, content: bytes, within: float = 0.0) -> None:
            self.given.append(within)

    async def work() -> None:
        client = ClickClient(lambda: None)
        writer = client._writer = Writer()
        writer.connect(asyncio.Transport())
        body = PredictModel(objects=[])
        first, second = (asyncio.ensure_future(client.ask("i", "c", body)) for _ in range(2))
        await asyncio.sleep(0)
        assert writer.given == [0.0, COMPANY_SECONDS]
        first.cancel()
        await asyncio.sleep(0)
        assert writer.given[2:] == [0.0]  # that its client has left
        second.cancel()
        await asyncio.wait([first, second])

    asyncio.run(work())
