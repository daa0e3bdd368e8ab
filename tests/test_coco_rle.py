"""COCO RLE against pycocotools; damaged RLE is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from samfast.coco_rle import all_sound, area_of, decode, encode, run_lengths
from samfast.errors import InputError

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


def blob(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.sin(x / 9) + np.cos(y / 7) > 0.4


@given(MASKS)
def test_round_trip_and_area(mask: np.ndarray) -> None:
    packed = encode(mask)
    assert packed["size"] == list(mask.shape)
    assert isinstance(packed["counts"], str)
    assert np.array_equal(decode(packed), mask)
    assert area_of(packed) == area_of(mask) == mask.sum()


@given(MASKS)
def test_agrees_with_pycocotools(mask: np.ndarray) -> None:
    theirs = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert encode(mask)["counts"] == theirs["counts"].decode()
    assert np.array_equal(decode(theirs), coco.decode(theirs).astype(bool))


def test_long_runs_and_large_masks() -> None:
    """Numbers of several characters, differences of both signs."""
    for mask in (blob(700, 900), np.zeros((3000, 2000), bool), np.ones((2000, 3000), bool)):
        assert np.array_equal(decode(encode(mask)), mask)


def test_every_form_of_a_mask_encodes_the_same() -> None:
    mask = blob(37, 53)
    packed = encode(mask)
    runs = run_lengths(packed)[1]
    forms: list[Any] = [
        np.asfortranarray(mask),
        mask[::-1][::-1],
        torch.from_numpy(mask),
        packed,
        {**packed, "counts": packed["counts"].encode()},
        {"size": (37, 53), "counts": runs.tolist()},
        {"size": [37, 53], "counts": runs},
    ]
    for form in forms:
        assert encode(form) == packed
        assert np.array_equal(decode(form), mask)
        assert area_of(form) == mask.sum()


BAD: list[tuple[Any, str]] = [
    ({}, "size is None"),
    ({"size": [4], "counts": "4"}, "size is"),
    ({"size": [4, 0], "counts": "0"}, "size is"),
    ({"size": [4.0, 4], "counts": "`0"}, "size is"),
    ({"size": [True, 4], "counts": "4"}, "size is"),
    ({"size": "ab", "counts": "4"}, "size is"),
    ({"size": [-2, -2], "counts": "4"}, "size is"),
    ({"size": [2, 2]}, "counts are NoneType"),
    ({"size": [2, 2], "counts": 4}, "counts are int"),
    ({"size": [2, 2], "counts": "3"}, "do not fill"),
    ({"size": [2, 2], "counts": "5"}, "do not fill"),
    ({"size": [2, 2], "counts": ""}, "do not fill"),
    ({"size": [2, 2], "counts": []}, "do not fill"),
    ({"size": [2, 2], "counts": [5, -1]}, "do not fill"),
    ({"size": [2, 2], "counts": [2**62, 2**62, 2**62, 2**62, 4]}, "do not fill"),
    ({"size": [2, 2], "counts": [2.0, 2.0]}, "whole numbers"),
    ({"size": [2, 2], "counts": [[4]]}, "whole numbers"),
    ({"size": [2, 2], "counts": "\x1f"}, "characters"),
    ({"size": [2, 2], "counts": "~"}, "characters"),
    ({"size": [2, 2], "counts": "ü"}, "characters"),
    ({"size": [2, 2], "counts": "P"}, "characters"),  # says that more follows
    ({"size": [2, 2], "counts": "o" * 20 + "0"}, "beyond any image"),
    (np.zeros((2, 2), np.uint8), "bool"),
    (np.zeros((1, 2, 2), bool), "index"),
    (torch.zeros(2, 2), "bool"),
]


@pytest.mark.parametrize(("mask", "said"), BAD, ids=range(len(BAD)))
def test_bad_masks(mask: Any, said: str) -> None:
    for function in (decode, encode, area_of):
        with pytest.raises(InputError, match=said):
            function(mask)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=127), max_size=30))
def test_any_text_is_a_mask_or_refused(counts: str) -> None:
    try:
        mask = decode({"size": [5, 7], "counts": counts})
    except InputError:
        return
    assert mask.shape == (5, 7)
    assert np.array_equal(
        mask, coco.decode({"size": [5, 7], "counts": counts.encode()}).astype(bool)
    )


def accepted(mask: dict[str, Any]) -> bool:
    try:
        run_lengths(mask)
    except InputError:
        return False
    return True


@given(st.lists(MASKS, max_size=5), st.data())
def test_many_masks_are_judged_together_as_each_alone(
    masks: list[np.ndarray], data: st.DataObject
) -> None:
    packed = [encode(mask) for mask in masks]
    assert all_sound(packed)
    if not packed:
        return
    damaged = packed[data.draw(st.integers(0, len(packed) - 1))]
    text = damaged["counts"]
    place = data.draw(st.integers(0, len(text)))
    letter = data.draw(st.sampled_from(["", *map(chr, range(46, 114)), "é"]))
    damaged["counts"] = text[:place] + letter + text[place + data.draw(st.integers(0, 1)) :]
    if not damaged["counts"]:
        assert not all_sound(packed)
    else:
        assert all_sound(packed) == all(map(accepted, packed))


def test_a_number_that_goes_on_into_the_next_text_is_not_sound() -> None:
    # Joined, the texts are those of 2 x 2 and 1 x 2 pixels; the first alone is cut short.
    first, second = encode(np.zeros((40, 40), bool)), encode(np.zeros((1, 2), bool))
    assert len(first["counts"]) > 1
    shorter = {**first, "counts": first["counts"][:-1]}
    longer = {**second, "counts": first["counts"][-1] + second["counts"]}
    assert all_sound([first, second])
    assert not all_sound([shorter, longer])
    assert not accepted(shorter)


@pytest.mark.parametrize("counts", [None, b"4", [4], "", 4])
def test_masks_without_text_are_left_to_run_lengths(counts: Any) -> None:
    assert not all_sound([encode(np.zeros((2, 2), bool)), {"size": [2, 2], "counts": counts}])
