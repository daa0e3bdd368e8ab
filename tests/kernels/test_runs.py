"""The kernels of runs and COCO's text against pycocotools and plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from samfast.automatic_masks import image_crops
from samfast.masks import bit_masks, coco_text, mask_runs, rle
from samfast.masks.kernels import run_ends as kernels
from samfast.masks.kernels import write_coco_text as text
from samfast.masks.mask_runs import PackedMasks
from tests.masks.test_mask_runs import DEVICE, as_pycocotools, assert_coco, assert_groups, lists

SHAPES = [(1, 1), (1, 50), (50, 1), (32, 3), (33, 3), (64, 9), (31, 5), (95, 2)]


@pytest.fixture(autouse=True)
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run in the interpreter too, in blocks so small that there are several."""
    for module in (mask_runs, coco_text):
        monkeypatch.setattr(module, "has_triton", lambda device: device.type == DEVICE)
    for module in (kernels, text):
        monkeypatch.setattr(module, "BLOCK", 8)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_masks(shape: tuple[int, int], share: float) -> None:
    generator = np.random.default_rng(1)
    assert_coco(generator.random((3, *shape)) < share)
    assert_coco(generator.random((1, *shape)) < share)


@pytest.mark.parametrize("shape", [(33, 2), (32, 2)])
def test_single_pixels(shape: tuple[int, int]) -> None:
    area = shape[0] * shape[1]
    single = np.eye(area, dtype=bool)[:: area // 8].reshape(-1, *shape)
    last = np.eye(area, dtype=bool)[-1:].reshape(-1, *shape)
    assert_coco(np.concatenate([single, ~single, last]))


def test_no_masks() -> None:
    assert_coco(np.zeros((0, 40, 3), dtype=bool))


def test_masks_of_several_sizes_together() -> None:
    assert_groups([(2, 40, 3), (3, 33, 2), (0, 9, 9), (1, 1, 1), (2, 70, 5)])
    assert_groups([(1, 31, 3), (1, 32, 2), (3, 5, 50)], share=1.0)


def test_long_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 1024)
    y, x = np.mgrid[:450, :600]
    masks = np.stack([(x - 300) ** 2 + (y - 225) ** 2 < r * r for r in (0, 200)] + [x > 590])
    assert max(int(runs.max()) for runs in rle.encode(torch.from_numpy(masks))) > 2**18
    assert_coco(masks)


def test_numbers_at_the_borders_of_a_group() -> None:
    for border in (15, 16, 17, 511, 512, 513):
        lengths = [0, border, 1, 1, 2 * border, border + 1, 1, border + 2, 3]
        values = np.arange(len(lengths)) % 2 == 1
        assert_coco(np.repeat(values, lengths)[None, :, None])


@pytest.mark.parametrize(
    "crop",
    [
        (0, 0, 9, 64),
        (0, 32, 9, 96),
        (2, 64, 9, 96),
        (0, 0, 4, 96),
        (3, 0, 9, 96),
        (2, 7, 5, 38),
        (1, 1, 9, 96),
    ],
)
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_crops(crop: tuple[int, int, int, int], share: float) -> None:
    x0, y0, x1, y1 = crop
    masks = torch.rand(3, y1 - y0, x1 - x0, generator=torch.Generator().manual_seed(1)) < share
    packed = PackedMasks.of(bit_masks.pack(masks.to(DEVICE)), y1 - y0, crop, (96, 9))
    runs = mask_runs.PixelChanges(packed).runs()
    whole = image_crops.uncrop(masks, crop, (96, 9))
    assert lists(runs.on_device()) == lists(rle.encode(whole))
    assert coco_text.strings(runs) == as_pycocotools(whole.numpy())


def test_the_same_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.rand(5, 45, 7, generator=torch.Generator().manual_seed(2)) < 0.3
    words = bit_masks.pack(masks.to(DEVICE))
    ours = mask_runs.PixelChanges(PackedMasks.of(words, 45)).bytes()
    monkeypatch.setattr(mask_runs, "has_triton", lambda device: False)
    assert ours.tolist() == mask_runs.PixelChanges(PackedMasks.of(words, 45)).bytes().tolist()
