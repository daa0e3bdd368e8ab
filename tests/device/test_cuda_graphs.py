"""Recording and replaying, with a stand-in for CUDA that records by remembering what to compute
again."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager

import pytest
import torch

from samfast.device.cuda_graphs import WARM_UP, Recorder
from samfast.encoding.graphed_encoder import GraphedEncoder
from samfast.errors import UsageError


class Stream:
    def __init__(self):
        self.waited = 0

    def wait_stream(self, other):
        self.waited += 1

    def wait_event(self, event): ...


class Event:
    recorded = 0

    def record(self, stream):
        Event.recorded += 1

    def synchronize(self): ...


class FakeCuda:
    """torch.cuda as far as Recorder uses it. A replay computes again what was computed while
    recording."""

    def __init__(self):
        self.recording = None
        self.pools = 0
        self.caller = self.current = Stream()
        self.ends_badly = False  # a recording in which something went wrong

    def pool(self):
        self.pools += 1
        return self.pools

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        graph.pool = pool
        self.recording = graph
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.recording = None
            if self.ends_badly and sys.exc_info()[0] is not None:
                raise RuntimeError(
                    "CUDA error: operation failed due to a previous error during capture"
                )
            self.current = before

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


class Graph:
    def __init__(self):
        self.again = lambda: None

    def replay(self):
        self.again()


class Encoder(torch.nn.Module):
    """One weight; while recording, it tells the graph how to compute the same into the same
    tensor."""

    def __init__(self, cuda):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.fake = cuda
        self.calls = 0

    def forward(self, pixels):
        self.calls += 1
        weight = (
            self.weight.detach()
        )  # a recording goes on reading this memory, whatever the attribute is later
        out = pixels * weight
        if self.fake.recording is not None:
            self.fake.recording.again = lambda: torch.mul(pixels, weight, out=out)
        return out


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    for name, value in (
        ("current_stream", lambda device: fake.current),
        ("Stream", lambda device: Stream()),
        ("Event", Event),
        ("CUDAGraph", Graph),
        ("graph_pool_handle", fake.pool),
        ("graph", fake.graph),
        ("stream", fake.stream),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    return fake


@pytest.fixture
def encoder(cuda):
    return Encoder(cuda)


@pytest.fixture
def graphed(encoder):
    with torch.no_grad():
        yield GraphedEncoder(encoder, encoder, 4, torch.float32)


def images(count, value):
    return torch.full((count, 3, 2, 2), float(value))


def test_a_size_is_recorded_once_and_replayed_from_then_on(graphed, encoder):
    assert graphed.sizes == ()
    for value in (1, 5, 7):
        assert torch.equal(graphed(images(2, value)), images(2, 2 * value))
    assert encoder.calls == WARM_UP + 1
    assert graphed.sizes == (2,)
    assert torch.equal(graphed(images(4, 3)), images(4, 6))
    assert encoder.calls == 2 * (WARM_UP + 1)
    assert graphed.sizes == (2, 4)
    assert torch.equal(graphed(images(2, 1)), images(2, 2))


def test_answers_survive_later_calls_of_every_size(graphed):
    first, second = graphed(images(2, 1)), graphed(images(4, 8))
    kept = first.clone(), second.clone()
    graphed(images(2, 5))
    graphed(images(4, 5))
    assert torch.equal(first, kept[0]) and torch.equal(second, kept[1])


def test_weights_written_in_place_are_seen_without_recording_again(graphed, encoder):
    graphed(images(2, 1))
    calls = encoder.calls
    with torch.no_grad():
        encoder.weight.fill_(3)
    assert torch.equal(graphed(images(2, 1)), images(2, 3))
    assert encoder.calls == calls


@pytest.mark.parametrize("how", ["parameter", "data"])
def test_replaced_weights_are_recorded_again_in_every_size(graphed, encoder, cuda, how):
    graphed(images(2, 1))
    graphed(images(4, 1))
    new = torch.tensor(9.0)
    if how == "parameter":
        encoder.weight = torch.nn.Parameter(new)
    else:
        encoder.weight.data = new
    assert torch.equal(graphed(images(2, 1)), images(2, 9))
    assert graphed.sizes == (2,)
    assert torch.equal(graphed(images(4, 1)), images(4, 9))
    assert cuda.pools == 2  # the first one ended with its graphs


def test_a_moved_model_is_refused(graphed, encoder):
    graphed(images(2, 1))
    encoder.to("meta")
    with pytest.raises(UsageError, match="is on meta now; load it again"):
        graphed(images(2, 1))


def test_threads_follow_each_other(graphed):
    wrong = []

    def work(value):
        with torch.no_grad():
            for _ in range(50):
                if not torch.equal(graphed(images(2, value)), images(2, 2 * value)):
                    wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_pixels_are_held_in_the_encoder_s_dtype(encoder):
    with torch.no_grad():
        graphed = GraphedEncoder(encoder.to(torch.bfloat16), encoder, 4, torch.bfloat16)
        answer = graphed(images(1, 3))
    assert answer.dtype == torch.bfloat16
    assert torch.equal(answer, images(1, 6).bfloat16())


def test_of_too_many_graphs_the_one_that_was_not_called_for_longest_goes(encoder):
    recorder = Recorder(encoder, "encoder", most=2)

    def call(count):
        pixels = images(count, count)
        with torch.no_grad():
            answer = recorder(
                count,
                lambda: torch.zeros_like(pixels),
                lambda static: static.copy_(pixels),
                encoder,
                torch.Tensor.clone,
            )
        assert torch.equal(answer, images(count, 2 * count))

    for count in (1, 2, 1, 3):
        call(count)
    assert recorder.keys == (1, 3)
    assert recorder.recorded == 3
    call(1)
    assert recorder.keys == (3, 1) and recorder.recorded == 3
    call(2)
    assert recorder.keys == (1, 2) and recorder.recorded == 4


class Full:
    """Work for which there is no memory, at the given one of its calls on more than so many
    images."""

    def __init__(self, work, most, call):
        self.work, self.most, self.call, self.calls = work, most, call, 0

    def __call__(self, pixels):
        self.calls += len(pixels) > self.most
        if len(pixels) > self.most and self.calls == self.call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.work(pixels)


@pytest.mark.parametrize("others", [True, False])
@pytest.mark.parametrize("ends_badly", [True, False])
@pytest.mark.parametrize("call", [1, WARM_UP, WARM_UP + 1])
def test_a_recording_without_memory_leaves_everything_as_it_was(
    encoder, cuda, call, ends_badly, others
):
    cuda.ends_badly = ends_badly
    with torch.no_grad():
        graphed = GraphedEncoder(Full(encoder, 2, call), encoder, 4, torch.float32)
        if others:
            graphed(images(1, 1))
        pools = cuda.pools
        waited = cuda.caller.waited
        with pytest.raises(torch.OutOfMemoryError):
            graphed(images(4, 1))
        assert cuda.current is cuda.caller and cuda.recording is None
        assert cuda.caller.waited > waited  # before its memory is given back
        assert graphed.sizes == ((1,) if others else ())
        # A pool ends with its last graph.
        first = 0 if others else 1
        assert cuda.pools - pools == (0 if others else 2)
        calls = encoder.calls
        assert torch.equal(graphed(images(2, 3)), images(2, 6))
        assert torch.equal(graphed(images(1, 3)), images(1, 6))
        assert encoder.calls - calls == (1 + first) * (WARM_UP + 1)
        assert torch.equal(graphed(images(4, 3)), images(4, 6))  # there is memory again
    assert set(graphed.sizes) == {1, 2, 4}


def test_without_memory_for_the_answer_the_next_call_still_waits_for_this_one(encoder):
    pixels = images(2, 1)

    def take(answer):
        raise torch.OutOfMemoryError("CUDA out of memory")

    recorder = Recorder(encoder, "encoder")
    rest = (2, lambda: torch.zeros_like(pixels), lambda static: static.copy_(pixels), encoder)
    with torch.no_grad():
        recorder(*rest, torch.Tensor.clone)
        before = Event.recorded
        with pytest.raises(torch.OutOfMemoryError):
            recorder(*rest, take)
        assert Event.recorded == before + 1
        assert torch.equal(recorder(*rest, torch.Tensor.clone), images(2, 2))
    assert recorder.recorded == 1


def test_another_error_of_a_recording_passes_as_it_is(encoder, cuda):
    def work(pixels):
        if cuda.recording is not None:
            raise RuntimeError("something else")
        return encoder(pixels)

    with torch.no_grad(), pytest.raises(RuntimeError, match="something else"):
        GraphedEncoder(work, encoder, 4, torch.float32)(images(2, 1))
    assert cuda.current is cuda.caller
