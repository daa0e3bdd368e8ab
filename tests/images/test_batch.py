"""to_batch against the original's resize and Sam.preprocess."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from samfast.errors import ImageError
from samfast.images import LoadedImage, resize_image, to_batch
from samfast.types import ImageBatch
from tests import oracle

SIDE = 64
SIZES = [(32, 48), (48, 32), (64, 64), (1, 1), (90, 200), (64, 40)]


def image(height: int, width: int) -> LoadedImage:
    rng = np.random.default_rng([height, width])
    return LoadedImage(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), f"{height}x{width}")


@pytest.fixture(scope="module")
def original_preprocess() -> Any:
    """Resize and preprocess of the original, with an image encoder that only knows its input side."""
    segment_anything = oracle.load()
    resize = segment_anything.utils.transforms.ResizeLongestSide(SIDE)

    class Encoder(torch.nn.Module):
        img_size = SIDE

    nothing = torch.nn.Identity()
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    sam = segment_anything.modeling.Sam(Encoder(), nothing, nothing, mean, std)

    def preprocess(pixels: np.ndarray) -> torch.Tensor:
        resized = resize.apply_image(pixels)
        return sam.preprocess(torch.as_tensor(resized).permute(2, 0, 1).contiguous()[None])[0]

    return preprocess


def test_bits_of_the_original(original_preprocess: Any) -> None:
    images = [image(*size) for size in SIZES]
    batch = to_batch(images, SIDE)
    assert isinstance(batch, ImageBatch)
    assert len(batch) == len(images)
    assert batch.pixels.shape == (len(images), 3, SIDE, SIDE)
    assert batch.pixels.dtype == torch.float32
    assert batch.pixels.is_contiguous()
    for row, loaded in zip(batch.pixels, images, strict=True):
        assert torch.equal(row, original_preprocess(loaded.pixels))


def test_an_image_alone_is_what_it_is_in_a_batch() -> None:
    images = [image(*size) for size in SIZES]
    together = to_batch(images, SIDE).pixels
    for row, loaded in zip(together, images, strict=True):
        assert torch.equal(row, to_batch([loaded], SIDE).pixels[0])


def test_sizes_and_padding() -> None:
    batch = to_batch([image(32, 48), image(100, 50)], SIDE)
    assert batch.original_sizes == ((32, 48), (100, 50))
    assert batch.input_sizes == ((43, 64), (64, 32))
    assert (batch.pixels[0, :, 43:] == 0).all()
    assert (batch.pixels[1, :, :, 32:] == 0).all()
    assert (batch.pixels[0, :, :43] != 0).all()  # no byte is exactly a mean: zeros are padding only


def test_views_and_read_only_pixels() -> None:
    """A BGR view (negative stride) and a frozen array; warnings are errors here."""
    base = image(64, 40)
    flipped = LoadedImage(base.pixels[:, :, ::-1], "bgr")
    copied = LoadedImage(base.pixels[:, :, ::-1].copy(), "copy")
    copied.pixels.flags.writeable = False
    assert np.array_equal(resize_image(flipped.pixels, SIDE), copied.pixels)
    assert torch.equal(to_batch([flipped], SIDE).pixels, to_batch([copied], SIDE).pixels)


def test_pixels_of_the_user_stay() -> None:
    base = image(64, 40)
    before = base.pixels.copy()
    to_batch([base, base], SIDE).pixels.fill_(7)
    assert np.array_equal(base.pixels, before)


def test_none_and_too_thin() -> None:
    with pytest.raises(ImageError, match="no images; pass at least one"):
        to_batch([], SIDE)
    with pytest.raises(ImageError, match=r"^1x500: .*too long and thin"):
        to_batch([image(32, 48), image(1, 500)], SIDE)
