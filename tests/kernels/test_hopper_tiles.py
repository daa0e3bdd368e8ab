"""Masks and measures by CUDA C++: it compiles here, and is right on a Hopper GPU."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from samfast.device import cuda_programs
from samfast.images import input_size
from samfast.masks import postprocess, postprocess_reference
from samfast.masks.kernels import hopper_tiles
from samfast.masks.measures import AREA, BOX, INNER, OUTER
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.types import Size

pytest.importorskip("triton")

from samfast.masks.kernels import postprocess_tiles
from tests.kernels.hopper import HALVES, on_hopper
from tests.kernels.test_masks import DEVICE, assert_same, discs, logits

DTYPES = (*HALVES, torch.float32)
SIDE = 1024
# Bands and strips that end within the image, images of one row or column, wider than a piece,
# smaller than the logits, and as large as the square.
SIZES = [
    (866, 1155), (480, 640), (1024, 683), (1500, 2250), (97, 1301), (1301, 97), (20, 3000),
    (3000, 20), (33, 31), (1, 9), (9, 1), (1024, 1024), (128, 128), (150, 149),
]  # fmt: skip


def frame(size: Size, side: int = SIDE) -> ResizeGeometry:
    return ResizeGeometry(input_size(size, side), size, side)


def smooth(count: int, low: int, dtype: torch.dtype) -> Tensor:
    """Logits of blobs of different sizes, with noise: some strips straddle a threshold."""
    generator = torch.Generator().manual_seed(count)
    coarse = [
        torch.nn.functional.interpolate(
            torch.randn(1, 1, cells, cells, generator=generator), (low, low), mode="bicubic"
        )[0, 0]
        for cells in (3 + number % 9 for number in range(count))
    ]
    noise = torch.randn(count, low, low, generator=generator) * 0.2
    return (torch.stack(coarse) * 10 + noise).to(DEVICE, dtype)


@on_hopper
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, dtype):
    for low_res in (smooth(5, 256, dtype), 10 * logits(2, 256, dtype)):
        assert hopper_tiles.takes(low_res, frame(size))
        assert_same(low_res, frame(size), 0.0, 1.0, hopper_tiles.launch)


@on_hopper
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "side", "low"),
    [((50, 70), 64, 16), ((70, 50), 64, 64), ((37, 45), 48, 8), ((33, 131), 96, 24)],
)
def test_other_squares(size, side, low, dtype):
    assert_same(logits(3, low, dtype), frame(size, side), 0.1, 0.3, hopper_tiles.launch)


@on_hopper
@pytest.mark.parametrize("count", [1, 11, 40, 700])
def test_fewer_and_more_masks(count):
    """They are cut into as many pieces as there are strips, or into the fewest."""
    low_res = smooth(count, 256, torch.bfloat16)
    for start in range(0, count, 50):
        wanted = torch.zeros(count, dtype=torch.bool, device=DEVICE)
        wanted[start : start + 3] = True
        made = hopper_tiles.launch(low_res, frame((300, 1200)), 0.0, offset=1.0, wanted=wanted)
        want = hopper_tiles.launch(low_res[wanted], frame((300, 1200)), 0.0, offset=1.0)
        assert made.measures is not None and want.measures is not None
        assert torch.equal(made.measures[wanted], want.measures)
        assert not made.measures[~wanted].any()
    assert_same(low_res[:20], frame((300, 1200)), 0.0, 1.0, hopper_tiles.launch)


@on_hopper
def test_each_combination_of_results_is_the_same():
    low_res, geometry = smooth(7, 256, torch.float16), frame((433, 577))
    whole = hopper_tiles.launch(low_res, geometry, 0.2, offset=0.5, masks=True, pack=True)
    for measured, masks, pack in product((False, True), repeat=3):
        offset = 0.5 if measured else None
        made = hopper_tiles.launch(low_res, geometry, 0.2, offset=offset, masks=masks, pack=pack)
        for name, asked in (("measures", measured), ("masks", masks), ("packed", pack)):
            ours, want = getattr(made, name), getattr(whole, name)
            assert torch.equal(ours, want) if asked else ours is None


@on_hopper
@pytest.mark.parametrize(
    ("threshold", "offset"), [(0.0, 1.0), (-2.5, -0.7), (5.999, 0.0), (-6.0, 1.0), (-0.0, 0.0)]
)
def test_flat_logits(threshold, offset):
    for low, size in ((16, (80, 61)), (256, (866, 1155))):
        geometry = frame(size, 4 * low)
        assert_same(discs(low), geometry, threshold, offset, hopper_tiles.launch)


@on_hopper
def test_a_logit_at_the_threshold_is_not_above_it():
    for level in (0.0, -0.0, 2.0, -7.5):
        low_res = torch.full((2, 256, 256), level, device=DEVICE)
        low_res[0, 100, 100] += 8
        geometry = ResizeGeometry((1024, 1024), (1024, 1024), 1024)
        assert_same(low_res, geometry, level, 0.0, hopper_tiles.launch)
        made = hopper_tiles.launch(low_res, geometry, level, offset=0.0).measures
        assert made is not None and not made[1].any() and 30 < int(made[0, AREA]) < 100


@on_hopper
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf"), -1e30])
def test_one_odd_logit_among_flat_ones(odd, dtype):
    for low, size in ((16, (80, 61)), (256, (866, 1155)), (256, (1000, 1000))):
        geometry = frame(size, 4 * low)
        for flat, place in product((-3.0, 3.0), ((5, 7), (0, 0), (low - 1, low - 1), (3, 11))):
            low_res = torch.full((2, low, low), flat, device=DEVICE, dtype=dtype)
            low_res[0][place] = max(odd, torch.finfo(dtype).min) if odd == -1e30 else odd
            asked: Any = {"offset": 1.0, "masks": True}
            ours = hopper_tiles.launch(low_res, geometry, 0.0, **asked)
            want = postprocess_reference.tiles(low_res, geometry, 0.0, **asked)
            assert ours.masks is not None and want.masks is not None
            assert torch.equal(ours.masks, want.masks)
            assert ours.measures is not None and want.measures is not None
            assert torch.equal(ours.measures, want.measures)


@on_hopper
def test_each_pixel_alone_is_where_it_belongs():
    geometry = ResizeGeometry((64, 64), (64, 64), 64)
    low_res = torch.full((256, 16, 16), -1.0, device=DEVICE)
    low_res.view(256, 256).fill_diagonal_(30.0)
    made = hopper_tiles.launch(low_res, geometry, 0.0, offset=0.5).measures
    want = postprocess_reference.tiles(low_res, geometry, 0.0, offset=0.5).measures
    assert made is not None and want is not None and torch.equal(made, want)


@on_hopper
def test_nothing_and_views():
    geometry = ResizeGeometry((48, 64), (45, 60), 64)
    none = torch.zeros(0, 16, 16, device=DEVICE)
    made = hopper_tiles.launch(none, geometry, 0.0, offset=1.0, masks=True, pack=True)
    assert made.masks is not None and made.packed is not None and made.measures is not None
    assert made.masks.shape == (0, 45, 60) and made.packed.shape == (0, 60, 2)
    assert made.measures.shape == (0, 7)
    assert_same(logits(6, 16)[::2], geometry, 0.0, 1.0, hopper_tiles.launch)
    assert_same(logits(3, 16).mT, geometry, 0.0, 1.0, hopper_tiles.launch)
    unaligned = torch.zeros(1 + 3 * 256, device=DEVICE)[1:].view(3, 16, 16).copy_(logits(3, 16))
    assert_same(unaligned, geometry, 0.0, 1.0, hopper_tiles.launch)
    objects = logits(6, 16).view(2, 3, 16, 16)
    nested, flat = (
        hopper_tiles.launch(each, geometry, 0.0, pack=True).packed
        for each in (objects, objects.flatten(0, 1))
    )
    assert nested is not None and flat is not None and torch.equal(nested, flat)


@on_hopper
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_computes_the_same(dtype):
    low_res, geometry = smooth(9, 256, dtype), frame((866, 1155))
    ours, theirs = (
        launch(low_res, geometry, 0.0, offset=1.0, masks=True)
        for launch in (hopper_tiles.launch, postprocess_tiles.launch)
    )
    assert ours.masks is not None and theirs.masks is not None
    assert int((ours.masks != theirs.masks).sum()) <= 1e-6 * ours.masks.numel()
    assert ours.measures is not None and theirs.measures is not None
    for column in (AREA, INNER, OUTER):
        assert (ours.measures - theirs.measures)[:, column].abs().max() <= 5
    assert torch.equal(ours.measures[:, BOX], theirs.measures[:, BOX])


@on_hopper
def test_the_same_answer_each_time():
    low_res, geometry = smooth(64, 256, torch.bfloat16), frame((866, 1155))
    asked: Any = {"offset": 1.0, "pack": True}
    first = hopper_tiles.launch(low_res, geometry, 0.0, **asked)
    assert first.measures is not None and first.packed is not None
    for _ in range(10):
        again = hopper_tiles.launch(low_res, geometry, 0.0, **asked)
        assert again.measures is not None and again.packed is not None
        assert torch.equal(again.measures, first.measures)
        assert torch.equal(again.packed, first.packed)


@on_hopper
def test_it_is_what_masks_are_made_by():
    low_res, geometry = smooth(3, 256, torch.bfloat16), frame((60, 90))
    assert postprocess._implementation(low_res, geometry) is hopper_tiles.launch
    other = low_res[:, :13, :13].contiguous()
    assert not hopper_tiles.takes(other, geometry)
    assert postprocess._implementation(other, geometry) is postprocess_tiles.launch


@pytest.mark.parametrize(
    ("low", "side", "known"),
    [(256, 1024, True), (64, 64, True), (8, 48, True), (13, 52, False), (512, 2048, False),
     (64, 32, False)],
)  # fmt: skip
def test_sizes_that_it_is_written_for(low, side, known):
    low_res, geometry = torch.zeros(1, low, low), frame((20, 30), side)
    assert hopper_tiles.knows(low_res, geometry) == known
    assert not hopper_tiles.knows(low_res.double(), geometry)
    assert not hopper_tiles.takes(low_res, geometry)  # as that is on the CPU


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_compiles_without_a_gpu(dtype):
    pytest.importorskip("cuda.bindings")
    code, said = cuda_programs.compile_program(hopper_tiles.program(dtype))
    assert code.startswith(b"\x7fELF") and "warning" not in said.lower()
