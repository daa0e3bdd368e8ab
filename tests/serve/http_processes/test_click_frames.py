"""Frames come out of a stream as they went in, however the stream is cut."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from samfast.serve.http_processes.click_frames import Answer, FrameReader, Setup, frame
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
    assert Answer.from_bytes(answer.to_bytes()) == answer


def test_every_setting_reaches_the_other_process():
    settings = Settings(
        host="0.0.0.0", root=Path("/photos"), token="a long secret", wires=("cvat", "roboflow")
    )
    for each in (settings, dataclasses.replace(Settings(), max_requests=3)):
        setup = Setup("/tmp/a/http", ("/", "/docs"), 30, each)
        assert Setup.from_json(setup.to_json()) == setup
