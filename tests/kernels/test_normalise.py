"""Bytes to normalised pixels on the device: the kernel's bits are its reference's, and those are NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from samfast.fused import reference
from samfast.fused.kernels.normalise import launch
from samfast.types import PIXEL_MEAN, PIXEL_STD

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def numpy(pixels: np.ndarray, sizes: list[tuple[int, int]]) -> torch.Tensor:
    out = np.zeros((len(pixels), 3, *pixels.shape[1:3]), np.float32)
    for own, square, (h, w) in zip(out, pixels, sizes, strict=True):
        planes = square[:h, :w].transpose(2, 0, 1).astype(np.float32)
        mean, std = (np.array(x, np.float32).reshape(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
        own[:, :h, :w] = (planes - mean) / std
    return torch.from_numpy(out)


def check(pixels: np.ndarray, sizes: list[tuple[int, int]]) -> None:
    given = torch.from_numpy(pixels).to(DEVICE), torch.tensor(sizes, dtype=torch.int32, device=DEVICE)
    want = numpy(pixels, sizes)
    for work in (reference.normalise, launch):
        got = work(*given)
        assert got.dtype == torch.float32 and got.is_contiguous()
        assert torch.equal(got.cpu(), want)
        assert not torch.signbit(got.cpu()[want == 0]).any()  # padding is +0


@settings(max_examples=60 if CUDA else 25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    side=st.sampled_from([1, 2, 15, 16, 17, 64, 100]),
    shares=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_any_batch(side, shares, seed):
    """Of images of every size in the square, whose other bytes are anything."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(shares), side, side, 3), dtype=np.uint8)
    check(pixels, [(max(1, round(a * side)), max(1, round(b * side))) for a, b in shares])


def test_every_byte_of_every_colour():
    check(np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3), [(16, 16)])


def test_a_side_of_several_blocks():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1040, 1040, 3), dtype=np.uint8)
    check(pixels, [(3, 1033)])
