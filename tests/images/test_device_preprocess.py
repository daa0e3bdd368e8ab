"""Pixels by way of bytes are those that the CPU makes, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from samfast.images import LoadedImage, batching, device_preprocess, to_batch
from samfast.images.device_preprocess import on_device
from tests.pairs import raw_batch

CPU = torch.device("cpu")
SIDE = 64
SIZES = [
    (1, 1),
    (1, 100),
    (100, 1),
    (2, 129),
    (63, 64),
    (64, 64),
    (64, 40),
    (65, 64),
    (90, 200),
    (300, 17),
]


def image(height: int, width: int) -> LoadedImage:
    rng = np.random.default_rng([height, width])
    return LoadedImage(
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8), f"{height}x{width}"
    )


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that is not written holds what was there."""
    plain = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: plain(*args, **kwargs).fill_(77))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("size", SIZES)
def test_one_image(size):
    images = [image(*size)]
    floats, bytes_ = to_batch(images, SIDE), raw_batch(images, SIDE)
    assert bytes_.pixels.dtype == torch.uint8 and bytes_.pixels.shape == (3 * size[0] * size[1],)
    assert (bytes_.sizes, bytes_.offsets) == ((size,), (0, len(bytes_.pixels)))
    assert (bytes_.original_sizes, bytes_.input_sizes) == (
        floats.original_sizes,
        floats.input_sizes,
    )
    assert torch.equal(on_device(bytes_, CPU), floats.pixels)


@pytest.mark.usefixtures("poisoned")
def test_many_images_and_parts_of_their_batch():
    images = [image(*size) for size in SIZES]
    floats, bytes_ = to_batch(images, SIDE), raw_batch(images, SIDE)
    assert len(bytes_) == len(images)
    assert torch.equal(on_device(bytes_, CPU), floats.pixels)
    assert torch.equal(on_device(bytes_, CPU, slice(2, 5)), floats.pixels[2:5])
    assert torch.equal(on_device(floats, CPU, slice(2, 5)), floats.pixels[2:5])


@pytest.mark.parametrize(
    ("name", "value"),
    [("MAX_RAW_PIXELS", 64 * 64), ("MAX_RAW_SIDE", 100), ("as_pillow", lambda: False)],
)
def test_what_the_device_should_not_resize_pillow_does(name, value, monkeypatch):
    monkeypatch.setattr(batching, name, value)
    images = [image(*size) for size in SIZES]
    floats, bytes_ = to_batch(images, SIDE), raw_batch(images, SIDE)
    resized = [
        size for size, new in zip(bytes_.sizes, floats.input_sizes, strict=True) if size == new
    ]
    assert len(resized) >= 4
    assert bytes_.original_sizes == floats.original_sizes
    assert torch.equal(on_device(bytes_, CPU), floats.pixels)


def test_few_bytes_are_on_the_device_at_a_time(monkeypatch):
    assert [*device_preprocess.chunks((5,))] == []
    assert [*device_preprocess.chunks((0, 1))] == [(0, 1)]
    monkeypatch.setattr(device_preprocess, "MAX_PIXEL_BYTES", 10)
    assert [*device_preprocess.chunks((7, 12, 17, 18, 40, 41))] == [(0, 2), (2, 3), (3, 4), (4, 5)]
    monkeypatch.setattr(device_preprocess, "MAX_PIXEL_BYTES", 3 * 100 * 100)
    images = [image(*size) for size in SIZES]
    bytes_ = raw_batch(images, SIDE)
    assert 2 < len([*device_preprocess.chunks(bytes_.offsets)]) < len(images)
    assert torch.equal(on_device(bytes_, CPU), to_batch(images, SIDE).pixels)
    assert torch.equal(on_device(bytes_, CPU, slice(3, 8)), to_batch(images[3:8], SIDE).pixels)


def test_in_the_callers_inference_mode_the_pixels_are_plain():
    with torch.inference_mode():
        assert not on_device(raw_batch([image(9, 9)], SIDE), CPU).is_inference()


class Event:
    """Stands for CUDA's event, on machines without a GPU."""


class Stream:
    """Stands for a stream of CUDA; notes what waits."""

    def __init__(self) -> None:
        self.waited: list[object] = []

    def wait_event(self, event: object) -> None:
        self.waited.append(event)


@pytest.fixture
def batch_on_a_device(monkeypatch):
    """A function that makes batches for the CPU as for a GPU, by the reference of its kernels."""
    launched = []

    def launch(copy: device_preprocess._Copy, out: torch.Tensor) -> None:
        launched.append(copy)
        table = copy.table.numpy()
        sizes = [(int(row[2]), int(row[3])) for row in table]
        new = [(int(row[4]), int(row[5])) for row in table]
        device_preprocess._plainly(copy.pixels, sizes, new, out)

    monkeypatch.setattr(device_preprocess, "has_triton", lambda device: True)
    monkeypatch.setattr(device_preprocess, "_launch", launch)
    with batching.Batcher(SIDE) as batcher:
        make = device_preprocess.batch_maker(batcher, CPU)
        yield lambda images: make(images, batching.already_loaded), launched


def test_a_batch_is_copied_when_it_is_made(batch_on_a_device):
    make, launched = batch_on_a_device
    images = [image(*size) for size in SIZES]
    batch = make(images)
    assert isinstance(batch, device_preprocess.CopiedBatch)
    assert len(batch) == len(images) and batch.original_sizes == tuple(each.size for each in images)
    floats = to_batch(images, SIDE)
    assert torch.equal(on_device(batch, CPU), floats.pixels)
    assert launched == [batch.copy]
    # A part, as after memory did not suffice for all, is copied anew.
    assert torch.equal(on_device(batch, CPU, slice(2, 5)), floats.pixels[2:5])
    assert len(launched) == 2 and launched[1] is not batch.copy


@pytest.mark.parametrize("reason", ["many bytes", "no memory"])
def test_a_batch_that_cannot_be_copied_ahead_is_copied_later(
    reason, batch_on_a_device, monkeypatch
):
    make, launched = batch_on_a_device
    plain = device_preprocess._copy

    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    if reason == "no memory":
        monkeypatch.setattr(device_preprocess, "_copy", fail)
    else:
        monkeypatch.setattr(device_preprocess, "MAX_PIXEL_BYTES", 3 * 100 * 100)
    images = [image(*size) for size in SIZES]
    batch = make(images)
    assert not isinstance(batch, device_preprocess.CopiedBatch)
    monkeypatch.setattr(device_preprocess, "_copy", plain)
    assert torch.equal(on_device(batch, CPU), to_batch(images, SIDE).pixels)
    assert launched


def test_the_encoders_stream_waits_for_the_copy(batch_on_a_device, monkeypatch):
    make, _ = batch_on_a_device
    event, stream = Event(), Stream()
    batch = replace(make([image(9, 9)]), stream=stream, copied=event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    on_device(batch, CPU)
    assert stream.waited == [event]
