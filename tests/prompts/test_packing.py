"""Ragged prompts into one flat batch, and every way in which they can be wrong."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from samfast.errors import PromptError
from samfast.prompts import pack, pack_groups, pack_objects
from samfast.prompts.validation import check, check_clicks
from samfast.types import PADDING_LABEL, Prompts

SIZE, INPUT, MASK = (60, 80), (96, 128), (32, 32)


def one(**prompts):
    return pack([Prompts(**prompts)], [SIZE], [INPUT], MASK)


def test_points_are_scaled_in_double_precision_and_filled_up():
    batch = one(points=[[[10, 20]], [[1, 2], [3, 4]]], labels=[[1], [0, -1]])
    assert len(batch) == 2
    assert batch.offsets == (0, 2)
    assert batch.coords is not None and batch.labels is not None
    assert batch.coords.dtype == torch.float32
    expected = np.array([[[10, 20], [0, 0]], [[1, 2], [3, 4]]]) * np.array([128 / 80, 96 / 60])
    np.testing.assert_array_equal(batch.coords.numpy(), expected.astype(np.float32))
    assert batch.coords is not None and batch.labels is not None
    assert batch.labels.tolist() == [[1, PADDING_LABEL], [0, -1]]


def test_arrays_lists_and_arrays_in_lists_are_packed_alike():
    """However many are checked at once."""
    rng = np.random.default_rng(0)
    sizes, inputs = [SIZE, (37, 53), SIZE, (8, 9)], [INPUT, (90, 128), INPUT, (114, 128)]
    points = [
        rng.random((n, k, 2)) * (w, h)
        for (n, k), (h, w) in zip(((3, 2), (1, 2), (0, 2), (5, 2)), sizes, strict=True)
    ]
    labels = [rng.integers(-1, 2, each.shape[:2]) for each in points]

    def packed(kind, only=range(4)):
        prompts = [
            Prompts(points=kind(p), labels=kind(k))
            if i in only
            else Prompts(points=list(p), labels=list(k))
            for i, (p, k) in enumerate(zip(points, labels, strict=True))
        ]
        return pack(prompts, sizes, inputs, MASK)

    wanted = packed(list)
    for batch in (
        packed(lambda x: x),
        packed(np.ndarray.tolist),
        packed(torch.from_numpy),
        packed(lambda x: [torch.from_numpy(each) for each in x]),
        packed(torch.from_numpy, only=(1, 2)),
    ):
        assert batch.offsets == wanted.offsets == (0, 3, 4, 4, 9)
        assert batch.coords.dtype == torch.float32 and batch.labels.dtype == torch.int64
        assert torch.equal(batch.coords, wanted.coords) and torch.equal(batch.labels, wanted.labels)


def test_images_of_other_numbers_of_points_an_object_are_filled_up():
    rng = np.random.default_rng(1)
    points = [rng.random((2, k, 2)) * 50 for k in (1, 3)]
    given = [Prompts(points=each, labels=np.ones(each.shape[:2])) for each in points]
    batch = pack(given, [SIZE] * 2, [INPUT] * 2, MASK)
    assert batch.coords is not None and batch.labels is not None
    assert batch.labels.tolist() == [[1, PADDING_LABEL, PADDING_LABEL]] * 2 + [[1, 1, 1]] * 2
    np.testing.assert_array_equal(batch.coords[2:].numpy(), (points[1] * 1.6).astype(np.float32))
    np.testing.assert_array_equal(
        batch.coords[:2, 0].numpy(), (points[0][:, 0] * 1.6).astype(np.float32)
    )


def test_the_given_arrays_are_not_changed():
    points, labels, boxes = (
        np.full((1, 1, 2), 5.0),
        np.ones((1, 1), np.int64),
        np.array([[0.0, 0, 9, 9]]),
    )
    batch = one(points=points, labels=labels, boxes=boxes)
    for each in (batch.coords, batch.labels, batch.boxes):
        each.zero_()
    assert points.min() == 5 and labels.min() == 1 and boxes.max() == 9


def test_boxes_are_scaled_along_each_axis():
    batch = pack([Prompts(boxes=[[0, 0, 40, 30]])], [SIZE], [(90, 128)], MASK)
    assert batch.boxes is not None
    assert batch.boxes.tolist() == [[0, 0, 64, 45]]


@pytest.mark.parametrize(
    "kind", [np.array, torch.tensor, lambda x: torch.tensor(x, dtype=torch.bfloat16)]
)
def test_arrays_and_tensors_are_taken_alike(kind):
    batch = one(points=kind([[[8.0, 16.0]]]), labels=kind([[1.0]]))
    assert batch.coords is not None
    torch.testing.assert_close(batch.coords, torch.tensor([[[8 * 1.6, 16 * 1.6]]]))


def test_images_of_several_sizes_share_a_batch():
    prompts = [
        Prompts(boxes=[[0, 0, 10, 10], [1, 1, 5, 5]]),
        Prompts(boxes=np.zeros((0, 4))),
        Prompts(boxes=[[0, 0, 4, 4]]),
    ]
    batch = pack(prompts, [SIZE, SIZE, (8, 8)], [INPUT, INPUT, (128, 128)], MASK)
    assert batch.offsets == (0, 2, 2, 3)
    assert batch.boxes is not None
    assert batch.boxes[2].tolist() == [0, 0, 64, 64]


def test_a_mixed_object_may_lack_points_when_a_box_or_mask_speaks_for_it():
    batch = one(points=[[], [[1, 1]]], labels=[[], [1]], boxes=[[0, 0, 9, 9], [0, 0, 5, 5]])
    assert batch.labels is not None
    assert batch.labels.tolist() == [[PADDING_LABEL], [1]]
    nothing = one(points=[[], []], labels=[[], []], boxes=[[0, 0, 9, 9], [0, 0, 5, 5]])
    assert nothing.coords is None and nothing.labels is None


BAD = {
    "no prompts at all": {},
    "points without labels": {"points": [[[1, 1]]]},
    "labels without points": {"labels": [[1]]},
    "2 labels for 1 points": {"points": [[[1, 1]]], "labels": [[1, 0]]},
    "labels for 2 objects but points for 1": {"points": [[[1, 1]]], "labels": [[1], [0]]},
    "one number for 1 points": {"points": [[[1, 1]]], "labels": [1]},
    "label 2;": {"points": [[[1, 1]]], "labels": [[2]]},
    "point (81, 5) lies outside the image of 80 x 60": {"points": [[[81, 5]]], "labels": [[1]]},
    "point (-1, 5) lies outside": {"points": [[[3, 5], [-1, 5]]], "labels": [[1, 1]]},
    "points hold NaN": {"points": [[[float("nan"), 5]]], "labels": [[1]]},
    "image 0: points hold NaN or infinity": {
        "points": np.full((2, 1, 2), np.inf),
        "labels": np.ones((2, 1)),
    },
    "object 1: point (80.5, 60) lies": {
        "points": np.array([[[80, 60]], [[80.5, 60]]]),
        "labels": np.ones((2, 1)),
    },
    "object 2: label 0.5;": {"points": np.ones((3, 1, 2)), "labels": np.array([[1], [-1], [0.5]])},
    "image 0, object 1: points hold NaN": {
        "points": [[[1, 1]], [[1, np.nan], [2, 2]]],
        "labels": [[1], [1, 1]],
    },
    "object 1: label 3;": {"points": [[[1, 1]], [[1, 1], [2, 2]]], "labels": [[1], [1, 3]]},
    "image 0: labels hold NaN": {"points": np.ones((1, 1, 2)), "labels": np.array([[np.nan]])},
    "object 0: 2 labels for 1 points": {"points": np.ones((2, 1, 2)), "labels": np.ones((2, 2))},
    "object 0: no points, box or mask": {"points": np.ones((2, 0, 2)), "labels": np.ones((2, 0))},
    "object 1: box (0, 60, 9, 70) lies outside": {"boxes": [[0, 59, 9, 70], [0, 60, 9, 70]]},
    "points[None]": {"points": [[1, 1], [2, 2]], "labels": [1, 1]},
    "not numbers": {"points": [[["a", "b"]]], "labels": [[1]]},
    "object 1: box (9, 9, 2, 2) is empty or inverted": {"boxes": [[0, 0, 1, 1], [9, 9, 2, 2]]},
    "object 0: box (5, 5, 5, 9) is empty": {"boxes": [[5, 5, 5, 9]]},
    "box (90, 0, 95, 9) lies outside": {"boxes": [[90, 0, 95, 9]]},
    "boxes of shape (4,)": {"boxes": [0, 0, 1, 1]},
    "boxes hold NaN": {"boxes": [[0, 0, float("inf"), 1]]},
    "2 points, 1 boxes": {
        "points": [[[1, 1]], [[2, 2]]],
        "labels": [[1], [1]],
        "boxes": [[0, 0, 1, 1]],
    },
    "masks of bool": {"masks": np.zeros((1, 1, 32, 32), bool)},
    "masks of shape (1, 1, 60, 80)": {"masks": np.zeros((1, 1, 60, 80), np.float32)},
    "masks hold NaN": {"masks": np.full((1, 1, 32, 32), np.nan, np.float32)},
    "object 1: no points, box or mask": {"points": [[[1, 1]], []], "labels": [[1], []]},
}


@pytest.mark.parametrize("message", BAD)
def test_a_wrong_prompt_gets_one_clear_line_that_names_it(message):
    with pytest.raises(PromptError, match=re.escape(message)) as caught:
        one(**BAD[message])
    assert str(caught.value).startswith("image 0")
    assert "\n" not in str(caught.value)


def test_prompts_for_another_number_of_images_are_refused():
    with pytest.raises(PromptError, match="prompts for 2 images but embeddings of 1"):
        pack([Prompts(boxes=[[0, 0, 1, 1]])] * 2, [SIZE], [INPUT], MASK)
    with pytest.raises(PromptError, match=re.escape("wrap it: [prompts]")):
        pack(Prompts(boxes=[[0, 0, 1, 1]]), [SIZE], [INPUT], MASK)
    with pytest.raises(PromptError, match="dict instead of samfast"):
        pack([{"boxes": 1}], [SIZE], [INPUT], MASK)  # type: ignore[list-item]


def test_images_are_grouped_by_kind_and_sorted_by_size():
    box, click = Prompts(boxes=[[0, 0, 4, 4]]), Prompts(points=[[[1, 1]]] * 2, labels=[[1]] * 2)
    sizes = [SIZE, (8, 8), SIZE, (8, 8), SIZE]
    groups = pack_groups([box, click, click, box, box], sizes, [INPUT] * 5, MASK)
    assert [each.images for each in groups] == [(3, 0, 4), (1, 2)]
    assert [each.offsets for each in groups] == [(0, 1, 2, 3), (0, 2, 4)]
    with pytest.raises(PromptError, match=re.escape("image 3, object 0: box (9, 9, 0, 0)")):
        pack_groups(
            [box, click, click, Prompts(boxes=[[9, 9, 0, 0]]), box], sizes, [INPUT] * 5, MASK
        )


def test_masks_of_different_devices_are_in_different_groups():
    given = [
        Prompts(masks=torch.zeros(1, 1, 32, 32, device=place)) for place in ("cpu", "meta", "cpu")
    ]
    assert [each.images for each in pack_groups(given, [SIZE] * 3, [INPUT] * 3, MASK)] == [
        (0, 2),
        (1,),
    ]


def test_clicks_of_many_images_are_checked_as_those_of_each():
    sizes = [(60, 80), (37, 53), (8, 9)]
    draw = np.random.default_rng(1)
    for count, points in ((1, 1), (2, 3)):
        prompts = [
            Prompts(
                points=(draw.random((count, points, 2)) * (w, h)).tolist(),
                labels=tuple(draw.integers(-1, 2, (count, points)).tolist()),
            )
            for h, w in sizes
        ]
        together = check_clicks(prompts, sizes)
        assert together is not None
        for each, one_by_one, size in zip(together, prompts, sizes, strict=True):
            wanted = check(one_by_one, size, MASK, "here")
            assert (each.count, each.boxes, each.masks) == (wanted.count, None, None)
            assert isinstance(each.labels, np.ndarray) and isinstance(wanted.labels, np.ndarray)
            assert each.labels.dtype == wanted.labels.dtype
            np.testing.assert_array_equal(each.points, wanted.points)
            np.testing.assert_array_equal(each.labels, wanted.labels)


@pytest.mark.parametrize(
    "other",
    [
        Prompts(points=[[[90, 3]]], labels=[[1]]),
        Prompts(points=[[[float("nan"), 3]]], labels=[[1]]),
        Prompts(points=[[[1, 3]]], labels=[[2]]),
        Prompts(points=[[[1, 3]]], labels=[[1], [1]]),
        Prompts(points=[[[1, 3], [2, 3]]], labels=[[1, 0]]),
        Prompts(points=[[[1, "x"]]], labels=[[1]]),
        Prompts(points=[[[1j, 2]]], labels=[[1]]),
        Prompts(points=[[[1, 3, 4]]], labels=[[1]]),
        Prompts(points=[[]], labels=[[]]),
        Prompts(points=[[[1, 3]]], labels=[[1]], boxes=[[1, 2, 3, 4]]),
        Prompts(points=[[[1, 3]]]),
        Prompts(),
        [[1, 3]],
    ],
)
def test_clicks_of_which_one_is_wrong_or_otherwise_are_left_to_a_check_of_each(other):
    good = Prompts(points=[[[1, 3]]], labels=[[1]])
    assert check_clicks([good, good], [SIZE] * 2) is not None
    assert check_clicks([good, other], [SIZE] * 2) is None
    assert check_clicks([good], [SIZE]) is None


@pytest.mark.parametrize("kinds", ["points", "boxes", "points boxes", "points masks"])
@pytest.mark.parametrize("even", [True, False])
def test_objects_are_packed_to_the_same_numbers_one_by_one(kinds, even):
    draw = np.random.default_rng(1)
    sizes, inputs = [SIZE, (37, 53), SIZE, (8, 9)], [INPUT, (90, 128), INPUT, (114, 128)]
    counts = (2, 0, 3, 1)
    images = [image for image, count in enumerate(counts) for _ in range(count)]
    points, labels, boxes = [], [], []
    for number, image in enumerate(images):
        height, width = sizes[image]
        clicks = 2 if even else 1 + number % 3
        points.append((draw.random((clicks, 2)) * (width, height)).tolist())
        labels.append(draw.integers(0, 2, clicks).tolist())
        boxes.append([0.25, 0.5, width - 1 / 3, height - 0.1 * number])
    masks = torch.from_numpy(draw.normal(size=(len(images), 1, *MASK)).astype(np.float32))
    given = {
        "points": points if "points" in kinds else None,
        "labels": labels if "points" in kinds else None,
        "boxes": boxes if "boxes" in kinds else None,
        "masks": masks if "masks" in kinds else None,
    }
    batch = pack_objects(
        given["points"], given["labels"], given["boxes"], given["masks"], images, sizes, inputs
    )
    starts = np.cumsum((0, *counts))
    prompts = [
        Prompts(**{name: each and each[start:stop] for name, each in given.items()})
        if "masks" not in kinds
        else Prompts(points=points[start:stop], labels=labels[start:stop], masks=masks[start:stop])
        for start, stop in pairwise(starts)
    ]
    # Images without objects have no kind of prompts; `pack` takes those that have some.
    prompted = [image for image, count in enumerate(counts) if count]
    asked, originals, moved = (
        [values[image] for image in prompted] for values in (prompts, sizes, inputs)
    )
    wanted = pack(asked, originals, moved, MASK)
    for name in ("coords", "labels", "boxes", "masks"):
        mine, theirs = getattr(batch, name), getattr(wanted, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
    assert list(batch.offsets) == starts.tolist()
    assert batch.images is None


def test_no_objects_are_packed_to_no_rows():
    batch = pack_objects([], [], None, None, [], [SIZE], [INPUT])
    assert batch.coords is batch.labels is None
    assert list(batch.offsets) == [0, 0]
    assert list(pack_objects(None, None, [], None, [], [], []).offsets) == [0]
