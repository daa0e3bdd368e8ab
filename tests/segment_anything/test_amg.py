"""utils.amg, modeling.image_encoder and utils.onnx: the original's functions, value for value."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from samfast.errors import InputError
from samfast.segment_anything.modeling import image_encoder
from samfast.segment_anything.utils import amg
from samfast.segment_anything.utils.onnx import SamOnnxModel
from tests import oracle
from tests.pairs import pair, relative_error

original = oracle.load()
theirs_amg = original.utils.amg
theirs_encoder = importlib.import_module("segment_anything.modeling.image_encoder")
theirs_onnx = importlib.import_module("segment_anything.utils.onnx")


@pytest.mark.parametrize("channels", [(), (3,)])
def test_uncropping(channels: tuple[int, ...]) -> None:
    boxes, points = torch.arange(24).view(-1, *channels, 4), torch.rand(6, *channels, 2).double()
    crop = [5, 7, 50, 60]
    for name, values in [("uncrop_boxes_xyxy", boxes), ("uncrop_points", points)]:
        ours, theirs = getattr(amg, name)(values, crop), getattr(theirs_amg, name)(values, crop)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    masks = torch.rand(2, 53, 45).gt(0.5)
    assert torch.equal(
        amg.uncrop_masks(masks, crop, 90, 100), theirs_amg.uncrop_masks(masks, crop, 90, 100)
    )


def test_boxes_near_a_crops_edge() -> None:
    boxes = torch.randint(0, 200, (500, 4))
    crop, image = [30, 0, 230, 200], [0, 0, 400, 200]
    for atol in (20.0, 3.0):
        expected = theirs_amg.is_box_near_crop_edge(boxes, crop, image, atol)
        assert torch.equal(amg.is_box_near_crop_edge(boxes, crop, image, atol), expected)


@pytest.mark.parametrize("box", [torch.tensor([1, 2, 5, 9]), np.array([1, 2, 5, 9]), [1, 2, 5, 9]])
def test_xywh(box) -> None:
    assert [int(v) for v in amg.box_xyxy_to_xywh(box)] == [1, 2, 4, 7]
    assert [int(v) for v in box] == [1, 2, 5, 9]


def test_batches() -> None:
    arguments = (7, np.arange(20), list(range(20)))
    ours, theirs = (
        [[list(part) for part in batch] for batch in module.batch_iterator(*arguments)]
        for module in (amg, theirs_amg)
    )
    assert ours == theirs
    assert list(amg.batch_iterator(3, [])) == list(theirs_amg.batch_iterator(3, [])) == []
    for bad in ((3,), (3, [1], [1, 2])):
        with pytest.raises(InputError):
            list(amg.batch_iterator(*bad))


def test_runs_crops_grids_and_scores() -> None:
    masks = torch.rand(3, 9, 12).gt(0.6)
    runs = amg.mask_to_rle_pytorch(masks)
    assert runs == theirs_amg.mask_to_rle_pytorch(masks)
    assert [amg.area_from_rle(r) for r in runs] == [theirs_amg.area_from_rle(r) for r in runs]
    assert [amg.coco_encode_rle(r) for r in runs] == [theirs_amg.coco_encode_rle(r) for r in runs]
    assert amg.generate_crop_boxes((90, 70), 2, 0.3) == theirs_amg.generate_crop_boxes(
        (90, 70), 2, 0.3
    )
    assert np.array_equal(amg.build_point_grid(5), theirs_amg.build_point_grid(5))
    logits = torch.randn(4, 3, 20, 20)
    expected = theirs_amg.calculate_stability_score(logits, 0.0, 1.0)
    assert torch.equal(amg.calculate_stability_score(logits, 0.0, 1.0), expected)


@pytest.mark.parametrize("keep", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_mask_data(keep: torch.Tensor) -> None:
    done = []
    for kind in (amg.MaskData, theirs_amg.MaskData):
        data = kind(t=torch.arange(3), n=np.arange(3) * 2, o=["a", "b", "c"])
        data["more"] = [[1], [2], [3]]
        data.filter(keep)
        other = kind()
        other.cat(data)
        other.cat(data)
        data["more"][0].append(9)  # must not change the copy
        del data["t"]
        other.to_numpy()
        done.append(({k: list(v) for k, v in other.items()}, [k for k, _ in data.items()]))
    assert done[0] == done[1]


@pytest.mark.parametrize("keep", [np.array([2, 0]), np.array([True, False, True])])
def test_mask_data_is_filtered_by_arrays(keep: np.ndarray) -> None:
    expected = theirs_amg.MaskData(t=torch.arange(3))  # of arrays the original takes tensors alone
    expected.filter(keep)
    data = amg.MaskData(t=torch.arange(3), n=np.arange(3), o=[0, 1, 2])
    data.filter(keep)
    for column in ("t", "n", "o"):
        assert list(data[column]) == expected["t"].tolist()


def test_a_column_of_mask_data_may_be_none() -> None:
    for kind in (amg.MaskData, theirs_amg.MaskData):
        data = kind(t=torch.arange(3))
        data._stats["nothing"] = None
        data.filter(torch.tensor([1]))
        assert data["nothing"] is None
        assert data["t"].tolist() == [1]
        other = kind()
        other.cat(data)
        other.cat(kind(nothing=[5]))
        assert other["nothing"] == [5]
        data.to_numpy()


@pytest.mark.parametrize("mode", ["holes", "islands"])
def test_small_regions_of_integers_are_those_of_bools(mode: str) -> None:
    mask = np.random.default_rng(0).random((40, 50)) > 0.55
    expected, changed = amg.remove_small_regions(mask, 6, mode)
    assert changed
    for dtype in (np.uint8, np.int64):
        result, changed = amg.remove_small_regions(mask.astype(dtype), 6, mode)
        assert changed
        assert result.dtype == np.bool_  # as the original's np.isin
        assert np.array_equal(result, expected)
    whole: Any = np.ones((8, 8), dtype=np.uint8)
    assert amg.remove_small_regions(whole, 6, mode)[0] is whole


def test_what_the_original_asserts_is_an_assertion_error() -> None:
    for call in (
        lambda module: module.MaskData(a=1),
        lambda module: list(module.batch_iterator(3, [1], [1, 2])),
        lambda module: module.remove_small_regions(np.ones((4, 4), dtype=bool), 1, "edges"),
    ):
        with pytest.raises(AssertionError):
            call(amg)


def test_mask_data_refuses_other_columns() -> None:
    with pytest.raises(InputError, match=r"'a'.*int"):
        amg.MaskData(a=1)


@pytest.mark.parametrize("size", [(14, 14), (9, 13), (5, 30)])
@pytest.mark.parametrize("window", [4, 7, 14])
def test_windows(size: tuple[int, int], window: int) -> None:
    tokens = torch.randn(2, *size, 6)
    windows, padded = image_encoder.window_partition(tokens, window)
    expected, expected_padded = theirs_encoder.window_partition(tokens, window)
    assert padded == expected_padded
    assert torch.equal(windows, expected)
    assert torch.equal(image_encoder.window_unpartition(windows, window, padded, size), tokens)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (4, 8), (9, 3), (5, 7)])
@pytest.mark.parametrize("length", [13, 27, 5])
def test_relative_positions(queries: int, keys: int, length: int) -> None:
    table = torch.randn(length, 8)
    expected = theirs_encoder.get_rel_pos(queries, keys, table)
    assert torch.equal(image_encoder.get_rel_pos(queries, keys, table), expected)


def test_added_positions() -> None:
    q, attn = torch.randn(6, 4 * 5, 8), torch.randn(6, 4 * 5, 3 * 7)
    tables = torch.randn(7, 8), torch.randn(13, 8)
    arguments = (attn, q, *tables, (4, 5), (3, 7))
    expected = theirs_encoder.add_decomposed_rel_pos(*arguments)
    assert relative_error(image_encoder.add_decomposed_rel_pos(*arguments), expected) <= 1e-6


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("stability", [False, True])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("points", [1, 4])
def test_onnx_model(single: bool, stability: bool, extra: bool, points: int) -> None:
    sams = pair()
    generator = torch.Generator().manual_seed(0)
    arguments = (
        torch.randn(1, 64, 16, 16, generator=generator),
        torch.rand(1, points, 2, generator=generator) * 256,
        torch.tensor([[2, 3, 0, -1]])[:, :points],
        torch.randn(1, 1, 64, 64, generator=generator),
        torch.tensor([float(points == 4)]),
        torch.tensor([90.0, 150.0]),
    )
    kinds = theirs_onnx.SamOnnxModel, SamOnnxModel
    models = [kind(sam, single, stability, extra) for kind, sam in zip(kinds, sams, strict=True)]
    for model in models:
        model.stability_score_offset = 0.02  # random weights give small logits
    expected, answer = (model(*arguments) for model in models)
    assert len(answer) == len(expected) == (5 if extra else 3)
    for a, b in zip(answer, expected, strict=True):
        assert relative_error(a, b) <= 1e-3
    assert relative_error(answer[0], expected[0]) <= 1e-4
    assert relative_error(answer[-1], expected[-1]) <= 1e-4
