"""Options that cannot be used are refused by name."""

from __future__ import annotations

import inspect
import math
import time
from typing import Any

import numpy as np
import pytest

from samfast.automatic_masks.options import AutomaticOptions
from samfast.errors import InputError, PromptError
from tests import oracle


def test_names_order_and_defaults_are_the_originals() -> None:
    theirs = inspect.signature(oracle.load().SamAutomaticMaskGenerator).parameters
    ours = inspect.signature(AutomaticOptions).parameters
    assert list(ours) == [*list(theirs)[1:], "max_memory"]
    assert all(ours[name].default == theirs[name].default for name in list(theirs)[1:])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points_per_side", 0),
        ("points_per_batch", 0),
        ("points_per_batch", 2.5),
        ("points_per_batch", True),
        ("crop_n_layers", -1),
        ("crop_n_points_downscale_factor", 0),
        ("pred_iou_thresh", math.nan),
        ("stability_score_thresh", "high"),
        ("stability_score_offset", math.inf),
        ("box_nms_thresh", None),
        ("crop_nms_thresh", math.nan),
        ("crop_overlap_ratio", 1.5),
        ("crop_overlap_ratio", -0.1),
        ("min_mask_region_area", -1),
        ("output_mode", "png"),
        ("max_memory", 0),
        ("max_memory", 1e9),
    ],
)
def test_bad_values(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name) as caught:
        AutomaticOptions(**{name: value})  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": None}, "exactly one"),
        ({"point_grids": [np.zeros((1, 2))]}, "exactly one"),
        (
            {"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
            "none in layer 2",
        ),
        (
            {"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1},
            "need 2",
        ),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 3))]}, r"shape \(n, 2\)"),
        ({"points_per_side": None, "point_grids": [np.zeros((0, 2))]}, r"shape \(n, 2\)"),
        ({"points_per_side": None, "point_grids": [[[0.5, 1.5]]]}, r"\[0, 1\]"),
        ({"points_per_side": None, "point_grids": [[[0.5, math.nan]]]}, r"\[0, 1\]"),
        ({"points_per_side": None, "point_grids": [[["a", "b"]]]}, "not an array of numbers"),
    ],
)
def test_bad_points(options: dict, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        AutomaticOptions(**options)


def test_numpy_numbers_are_numbers() -> None:
    numbers: Any = {"points_per_side": np.int64(4), "pred_iou_thresh": np.float32(0.5)}
    options = AutomaticOptions(**numbers)
    assert options.grids()[0].shape == (16, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crop_n_layers": 30}, r"crop_n_layers=30, .* \d+ crops and \d+ points in its first"),
        ({"crop_n_layers": 10**9}, "crops and"),
        ({"crop_n_layers": 10**9, "max_memory": 10**30}, "crops and"),
        ({"points_per_side": 10**5}, "1 crops and 10000000000 points, which take"),
        ({"points_per_side": 10**400}, "points"),
        ({"crop_n_layers": 7, "max_memory": 100 << 20}, "100 MiB may be used"),
        (
            {"points_per_side": None, "point_grids": [np.zeros((9, 2))] * 20, "crop_n_layers": 19},
            "crop_n_layers=19",
        ),
    ],
)
def test_absurd_layers_and_grids_are_refused_by_what_they_need(options, said):
    start = time.perf_counter()
    with pytest.raises(InputError, match=said):
        AutomaticOptions(**options)
    assert time.perf_counter() - start < 5


def test_many_layers_that_fit_are_taken():
    AutomaticOptions(crop_n_layers=4)
    AutomaticOptions(crop_n_layers=7, max_memory=4 << 30)
    AutomaticOptions(points_per_side=1000)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1024),
        ({"points_per_side": 4, "crop_n_layers": 2}, 16 * (1 + 4 + 16)),
        (
            {"points_per_side": 4, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
            16 + 4 * 4,
        ),
        ({"points_per_side": None, "point_grids": [np.zeros((3, 2)), np.zeros((2, 2))]}, 3),
    ],
)
def test_points_of_an_image_are_counted(options: dict, count: int) -> None:
    assert AutomaticOptions(**options).point_count == count
