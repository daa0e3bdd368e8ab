"""to_batch against the original's resize and Sam.preprocess."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samfast.errors import ImageError
from samfast.images import Batcher, LoadedImage, batching, resize_image, to_batch
from samfast.images.batching import already_loaded
from samfast.types import ImageBatch
from tests import oracle
from tests.pairs import raw_batch

SIDE = 64
SIZES = [(32, 48), (48, 32), (64, 64), (1, 1), (90, 200), (64, 40)]


def image(height: int, width: int) -> LoadedImage:
    rng = np.random.default_rng([height, width])
    return LoadedImage(
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8), f"{height}x{width}"
    )


@pytest.fixture(scope="module")
def original_preprocess() -> Any:
    """Resize and preprocess of the original, with an encoder that has only an input side."""
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


def test_pixels_are_the_originals_bit_for_bit(original_preprocess: Any) -> None:
    images = [image(*size) for size in SIZES]
    batch = to_batch(images, SIDE)
    assert isinstance(batch, ImageBatch)
    assert len(batch) == len(images)
    assert batch.pixels.shape == (len(images), 3, SIDE, SIDE)
    assert batch.pixels.dtype == torch.float32
    assert batch.pixels.is_contiguous()
    for row, loaded in zip(batch.pixels, images, strict=True):
        assert torch.equal(row, original_preprocess(loaded.pixels))


def test_an_images_pixels_do_not_depend_on_the_batch() -> None:
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
    assert (batch.pixels[0, :, :43] != 0).all()  # no byte equals a mean: only padding is zero


def test_views_and_read_only_pixels() -> None:
    """A BGR view (negative stride) and a read-only array; warnings are errors here."""
    base = image(64, 40)
    flipped = LoadedImage(base.pixels[:, :, ::-1], "bgr")
    copied = LoadedImage(base.pixels[:, :, ::-1].copy(), "copy")
    copied.pixels.flags.writeable = False
    assert np.array_equal(resize_image(flipped.pixels, SIDE), copied.pixels)
    assert torch.equal(to_batch([flipped], SIDE).pixels, to_batch([copied], SIDE).pixels)


def test_the_callers_pixels_are_not_changed() -> None:
    base = image(64, 40)
    before = base.pixels.copy()
    to_batch([base, base], SIDE).pixels.fill_(7)
    assert np.array_equal(base.pixels, before)


@pytest.mark.parametrize("make", [to_batch, raw_batch])
def test_no_images_and_one_too_thin_are_refused(make: Any) -> None:
    with pytest.raises(ImageError, match="no images; pass at least one"):
        make([], SIDE)
    with pytest.raises(ImageError, match=r"^1x500: .*too long and thin"):
        make([image(32, 48), image(1, 500)], SIDE)


def test_raw_batches_hold_the_images_one_after_another() -> None:
    base = image(64, 40)
    images = [*(image(*size) for size in SIZES), LoadedImage(base.pixels[:, ::-1, ::-1], "view")]
    batch = raw_batch(images, SIDE)
    assert batch.sizes == batch.original_sizes == tuple(each.size for each in images)
    assert batch.input_sizes == to_batch(images, SIDE).input_sizes
    for each, start, stop in zip(images, batch.offsets, batch.offsets[1:], strict=False):
        assert np.array_equal(batch.pixels[start:stop].numpy(), each.pixels.ravel())
    assert batch.offsets[-1] == len(batch.pixels)


def test_threads_stay_from_batch_to_batch_and_end_with_the_batcher() -> None:
    def threads() -> set[int]:
        running = threading.enumerate()
        return {t.ident for t in running if t.ident and t.name.startswith("samfast-image")}

    seen: set[int] = set()

    def load(size: tuple[int, int], number: int) -> LoadedImage:
        seen.add(threading.get_ident())
        return image(*size)

    with Batcher(SIDE) as batcher:
        for _ in range(20):
            batcher.raw_batch(SIZES, load)
        assert seen == threads()
        assert threading.get_ident() not in seen
    assert not threads()
    with Batcher(SIDE) as batcher:
        batcher.batch([image(9, 9)], already_loaded)
        assert not threads()  # a single image starts none
        images = [image(*size) for size in SIZES]
        batcher.raw_batch(images, already_loaded)
        assert batcher.load([*images, ImageError("bad")], already_loaded)[:-1] == images
        assert not threads()  # nor do images that are loaded and are only copied


def test_images_that_the_host_resizes_are_given_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    resized: set[int] = set()
    plain = resize_image

    def resize(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
        resized.add(threading.get_ident())
        return plain(pixels, side)

    monkeypatch.setattr(batching, "resize_image", resize)
    monkeypatch.setattr(batching, "MAX_RAW_PIXELS", 40 * 40)
    with Batcher(SIDE) as batcher:
        batcher.raw_batch([image(50, 60), image(20, 30), image(70, 50)], already_loaded)
    assert resized and threading.get_ident() not in resized


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_few_bytes_and_many_are_copied_alike(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MAX_COPIED_BYTES", limit)
    images = [image(*size) for size in SIZES]
    batch = raw_batch(images, SIDE)
    wanted = np.concatenate([each.pixels.ravel() for each in images])
    assert np.array_equal(batch.pixels.numpy(), wanted)


def test_the_error_names_the_first_bad_image_by_its_number() -> None:
    def load(source: int, number: int) -> LoadedImage:
        if source < 0:
            raise ImageError(f"image {number}: bad")
        return image(9, 9)

    with Batcher(SIDE) as batcher, pytest.raises(ImageError, match="image 12: bad"):
        batcher.raw_batch([1, 1, -1, 1, -1], load, first=10)
