"""Bytes to normalised pixels on the device: the kernels' bits are Pillow's and NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("triton")

from samfast.images import resampling
from samfast.images.device_preprocess import plan
from samfast.images.kernels import resize_normalize
from samfast.images.kernels.resize_normalize import launch
from samfast.types import PIXEL_MEAN, PIXEL_STD

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"

Size = tuple[int, int]


def numpy(images: list[np.ndarray], new: list[Size], side: int) -> torch.Tensor:
    out = np.zeros((len(images), 3, side, side), np.float32)
    for planes, image, (h, w) in zip(out, images, new, strict=True):
        resized = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
        mean, std = (np.array(x, np.float32).reshape(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
        planes[:, :h, :w] = (resized.transpose(2, 0, 1).astype(np.float32) - mean) / std
    return torch.from_numpy(out)


def check(images: list[np.ndarray], new: list[Size], side: int) -> None:
    table, taps, limits = plan([(image.shape[0], image.shape[1]) for image in images], new)
    flat = np.concatenate([image.ravel() for image in images])
    pixels, places, weights = (torch.from_numpy(x).to(DEVICE) for x in (flat, table, taps))
    got = torch.full((len(images), 3, side, side), float("nan"), device=DEVICE)
    launch(pixels, places, weights, limits, got, resampling.BITS)
    want = numpy(images, new, side)
    assert torch.equal(got.cpu(), want)
    assert not torch.signbit(got.cpu()[want == 0]).any()  # padding is +0


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def fitted(size: Size, side: int) -> Size:
    scale = side / max(size)
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


LENGTH = st.integers(1, 300 if CUDA else 50)


@settings(max_examples=60 if CUDA else 8)
@given(
    side=st.sampled_from([1, 2, 15, 16, 17, 32]),
    sizes=st.lists(st.tuples(LENGTH, LENGTH), min_size=1, max_size=3),
)
def test_any_batch(side, sizes):
    check([noise(*size) for size in sizes], [fitted(size, side) for size in sizes], side)


def test_both_orders_of_passes_and_no_resize():
    sizes = [(70, 20), (20, 70), (32, 24), (24, 32), (9, 9), (32, 32)]
    new = [fitted(size, 32) for size in sizes]
    if resampling.columns_first((70, 20), new[0]):  # Pillow 13
        assert not resampling.columns_first((20, 70), new[1])
    check([noise(*size) for size in sizes], new, 32)


def test_every_byte_of_every_colour():
    check([np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)], [(16, 16)], 16)


def test_lines_of_several_blocks(monkeypatch):
    if not CUDA:
        monkeypatch.setattr(resize_normalize, "BLOCK", 16)
    long, side = (1100, 540) if CUDA else (90, 40)
    check([noise(4, long)], [(3, side)], side)
    check([noise(long, 4)], [(side, 3)], side)
