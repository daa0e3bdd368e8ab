"""ResizeLongestSide, number for number the original's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samfast.errors import ImageError
from samfast.segment_anything.utils.transforms import ResizeLongestSide
from tests import oracle
from tests.pairs import picture

Original = oracle.load().utils.transforms.ResizeLongestSide
SIZES = [(32, 48), (48, 32), (640, 427), (1000, 1500), (256, 256), (256, 100)]


@pytest.mark.parametrize("size", SIZES)
def test_images_points_and_boxes(size: tuple[int, int]) -> None:
    ours, theirs = ResizeLongestSide(256), Original(256)
    image = picture(*size)
    assert np.array_equal(ours.apply_image(image), theirs.apply_image(image))
    coords = np.random.default_rng(0).uniform(0, 48, (3, 5, 2))
    boxes = np.random.default_rng(1).integers(0, 48, (3, 4))
    for method, values in [("apply_coords", coords), ("apply_boxes", boxes)]:
        moved, expected = (getattr(each, method)(values, size) for each in (ours, theirs))
        assert moved.dtype == expected.dtype == np.float64
        assert np.array_equal(moved, expected)
        tensor = torch.from_numpy(values)
        moved, expected = (getattr(t, method + "_torch")(tensor, size) for t in (ours, theirs))
        assert moved.dtype == expected.dtype == torch.float32
        assert torch.equal(moved, expected)


@pytest.mark.parametrize("size", [(100, 200), (256, 100)])
def test_images_of_one_channel_lose_it(size: tuple[int, int]) -> None:
    grey = picture(*size)[:, :, :1]
    expected = Original(256).apply_image(grey)
    for image in (grey, grey[:, :, 0]):
        resized = ResizeLongestSide(256).apply_image(image)
        assert resized.ndim == 2
        assert np.array_equal(resized, expected)


def test_the_input_is_not_changed() -> None:
    transform = ResizeLongestSide(256)
    image, coords = picture(256, 200), np.ones((2, 2))
    transform.apply_image(image)[:] = 0
    transform.apply_coords(coords, (10, 20))
    assert np.array_equal(image, picture(256, 200))
    assert np.array_equal(coords, np.ones((2, 2)))


def test_tensors_are_resized_by_height_and_width_not_batch_and_channels() -> None:
    image = torch.from_numpy(picture(100, 200)).permute(2, 0, 1)[None].float()
    resized = ResizeLongestSide(256).apply_image_torch(image)
    assert resized.shape == (1, 3, 128, 256)
    exact = torch.from_numpy(ResizeLongestSide(256).apply_image(picture(100, 200))).permute(2, 0, 1)
    assert (resized[0] - exact).abs().max() <= 1


def test_a_side_that_would_vanish() -> None:
    with pytest.raises(ImageError, match="too long and thin"):
        ResizeLongestSide(256).apply_image(np.zeros((1, 600, 3), dtype=np.uint8))
