"""Runs and COCO's text of many packed masks at once are pycocotools'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from samfast.automatic_masks import image_crops
from samfast.masks import bit_masks, coco_text, mask_runs, rle
from samfast.masks.coco_text import strings
from samfast.masks.mask_runs import PackedMasks

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
MASKS = arrays.arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 70), st.integers(1, 9)))


def as_pycocotools(masks: np.ndarray) -> list[str]:
    return [
        coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode() for mask in masks
    ]


def lists(masks: list[np.ndarray] | list[torch.Tensor]) -> list[list[int]]:
    return [runs.tolist() for runs in masks]


def unpack(packed: torch.Tensor, height: int) -> torch.Tensor:
    """(N, W, ceil(H / 32)) int32 -> (N, H, W) bool."""
    columns = ((packed[..., None] >> bit_masks.bits(packed.device)) & 1).to(torch.bool)
    return columns.flatten(2)[..., :height].mT.contiguous()


def assert_coco(masks: np.ndarray) -> None:
    """Packing, runs and text are pycocotools'."""
    tensor = torch.from_numpy(masks).to(DEVICE)
    words = bit_masks.pack(tensor)
    assert torch.equal(unpack(words, masks.shape[1]), tensor)
    expected = as_pycocotools(masks)
    changes = mask_runs.PixelChanges(PackedMasks.of(words, masks.shape[1]))
    runs = changes.runs()
    assert runs.size == masks.shape[1:]
    assert len(changes) == len(runs) == len(masks)
    on_host = mask_runs.split(runs.lengths.cpu().numpy(), runs.counts)
    assert lists(on_host) == lists(rle.encode(torch.from_numpy(masks)))
    assert lists(runs.on_device()) == lists(on_host)
    assert strings(runs) == expected
    for parts in (on_host, runs.on_device()):
        assert strings(mask_runs.join(parts, runs.size)) == expected
    half = len(masks) // 2
    assert strings(changes.runs(0, half)) + strings(changes.runs(half)) == expected


@settings(deadline=None, max_examples=150)
@given(MASKS)
def test_any_masks(masks: np.ndarray) -> None:
    assert_coco(masks)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 50), (50, 1), (32, 3), (33, 3), (64, 64), (31, 5), (1, 33)]
)
def test_empty_full_and_single_pixels(shape: tuple[int, int]) -> None:
    area = shape[0] * shape[1]
    single = np.eye(area, dtype=bool)[:: max(1, area // 40)].reshape(-1, *shape)
    last = np.eye(area, dtype=bool)[-1:].reshape(-1, *shape)
    extremes = np.stack([np.zeros(shape, bool), np.ones(shape, bool)])
    assert_coco(np.concatenate([single, extremes, ~single, last]))


def test_long_runs_and_many() -> None:
    y, x = np.mgrid[:700, :900]
    masks = [(x - 400) ** 2 + (y - 350) ** 2 < r * r for r in (0, 3, 300, 2000)]
    masks += [x > 800, y > 600, (x + y) % 2 == 0, np.random.default_rng(0).random(x.shape) < 0.5]
    masks += [(x == 300) & (y == 5), (x < 2) | (x > 897)]
    assert max(int(runs.max()) for runs in rle.encode(torch.from_numpy(np.stack(masks)))) > 2**18
    assert_coco(np.stack(masks))


def test_numbers_at_the_borders_of_a_group() -> None:
    for border in (15, 16, 17, 511, 512, 513, 16383, 16384, 16385):
        lengths = [0, border, 1, 1, 2 * border, border + 1, 1, border + 2, 3]
        values = np.arange(len(lengths)) % 2 == 1
        column = np.repeat(values, lengths)[None, :, None]
        assert_coco(column)
        assert_coco(column.mT)


def test_a_device_without_triton_writes_what_the_host_writes() -> None:
    y, x = np.mgrid[:300, :1200]
    masks = [(x - 400) ** 2 + (y - 150) ** 2 < r * r for r in (0, 9, 140)]
    masks += [x > 800, np.random.default_rng(0).random(x.shape) < 0.5, x >= 0]
    runs = mask_runs.join(rle.encode(torch.from_numpy(np.stack(masks))), (300, 1200))
    text, stops = coco_text._write(runs, max_groups=4)
    assert text[: stops[-1]].numpy().tobytes().decode() == "".join(
        coco_text.texts_on_host(runs.lengths.numpy(), runs.counts)
    )


def assert_groups(shapes: list[tuple[int, int, int]], share: float = 0.4) -> None:
    """Masks of several sizes, counted and written together, are those of each size alone."""
    draw = np.random.default_rng(7)
    masks = [draw.random(shape) < share for shape in shapes]
    packed = [
        PackedMasks.of(bit_masks.pack(torch.from_numpy(each).to(DEVICE)), each.shape[1])
        for each in masks
    ]
    changes = mask_runs.PixelChanges(*packed)
    expected = [text for each in masks for text in as_pycocotools(each)]
    wanted = [runs for each in masks for runs in lists(rle.encode(torch.from_numpy(each)))]
    assert len(changes) == len(expected) == len(changes.bytes())
    for start, stop in ((0, len(expected)), (1, 4), (2, 3), (3, len(expected)), (4, 4)):
        runs = changes.runs(start, stop)
        assert lists(runs.on_device()) == wanted[start:stop]
        assert strings(runs) == expected[start:stop]
    assert changes.runs().size == max((each.shape[1:] for each in masks), key=np.prod)


def test_masks_of_several_sizes_together() -> None:
    assert_groups([(2, 40, 3), (3, 33, 2), (0, 9, 9), (1, 1, 1), (2, 70, 5)])
    assert_groups([(1, 31, 3), (1, 32, 2), (3, 5, 50)], share=0.0)
    assert_groups([(1, 31, 3), (1, 32, 2), (3, 5, 50)], share=1.0)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_crops_of_an_image(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 9))
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    masks = torch.from_numpy(data.draw(arrays.arrays(bool, (3, y1 - y0, x1 - x0))))
    crop, size = (x0, y0, x1, y1), (height, width)
    packed = PackedMasks.of(bit_masks.pack(masks.to(DEVICE)), y1 - y0, crop, size)
    runs = mask_runs.PixelChanges(packed).runs()
    whole = image_crops.uncrop(masks, crop, size)
    assert lists(runs.on_device()) == lists(rle.encode(whole))
    assert strings(runs) == as_pycocotools(whole.numpy())


@pytest.mark.parametrize(
    "crop", [(0, 0, 9, 64), (0, 32, 9, 96), (2, 64, 9, 96), (0, 0, 4, 96), (3, 0, 9, 96)]
)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_crops_at_the_borders_of_words(crop: tuple[int, int, int, int], share: float) -> None:
    x0, y0, x1, y1 = crop
    masks = torch.rand(4, y1 - y0, x1 - x0, generator=torch.Generator().manual_seed(1)) < share
    packed = PackedMasks.of(bit_masks.pack(masks.to(DEVICE)), y1 - y0, crop, (96, 9))
    runs = mask_runs.PixelChanges(packed).runs()
    assert lists(runs.on_device()) == lists(rle.encode(image_crops.uncrop(masks, crop, (96, 9))))
