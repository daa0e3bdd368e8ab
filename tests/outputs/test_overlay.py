"""Colours that differ, fills and outlines where they belong, prompts drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from samfast.errors import InputError, OutputError
from samfast.outputs import distinct_colours, draw_overlay, encode, write_overlay
from samfast.outputs.overlay import outlines
from samfast.types import Prompts

GREY = np.full((60, 80, 3), 100, np.uint8)
GREEN, RED = (38, 190, 76), (226, 48, 48)


def box(size: tuple[int, int], y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def perceptual(colours: np.ndarray) -> np.ndarray:
    """CIE Lab, by scikit-image: independent of the space that the colours were chosen in."""
    from skimage.color import rgb2lab

    return rgb2lab(colours[None] / 255)[0]


def closest(colours: np.ndarray) -> float:
    lab = perceptual(colours)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return float((distance + 1e9 * np.eye(len(lab))).min())


# ---------------------------------------------------------------------------------- colours


def test_colours_are_the_same_every_time_and_extend() -> None:
    assert np.array_equal(distinct_colours(50)[:7], distinct_colours(7))
    assert distinct_colours(0).shape == (0, 3)
    assert distinct_colours(3).dtype == np.uint8


@pytest.mark.parametrize(("count", "least"), [(4, 40.0), (8, 22.0), (16, 9.0), (40, 2.5)])
def test_colours_are_far_apart(count: int, least: float) -> None:
    """In Delta E 1976, where 2.3 is just noticeable."""
    assert closest(distinct_colours(count)) > least


def test_neighbouring_colours_differ_strongly_however_many_there_are() -> None:
    lab = perceptual(distinct_colours(1000))
    assert np.linalg.norm(np.diff(lab, axis=0), axis=-1).min() > 40


def test_no_colour_is_grey_black_or_white() -> None:
    lab = perceptual(distinct_colours(300))
    assert np.linalg.norm(lab[:, 1:], axis=-1).min() > 25
    assert lab[:, 0].min() > 40
    assert lab[:, 0].max() < 90


# ------------------------------------------------------------------------ fills and outlines


def test_fill_outline_and_the_rest() -> None:
    mask = box((60, 80), 10, 20, 40, 60)
    out = draw_overlay(GREY, [mask])
    colour = distinct_colours(1)[0].astype(float)
    inside = ndimage.binary_erosion(mask)
    assert out.dtype == np.uint8
    assert out.shape == GREY.shape
    assert (out[~mask] == 100).all()
    assert (out[mask & ~inside] == colour).all()
    assert np.abs(out[inside] - (0.55 * 100 + 0.45 * colour)).max() <= 1


def test_each_mask_has_its_own_colour_and_smaller_ones_are_on_top() -> None:
    small, large = box((60, 80), 20, 30, 30, 40), box((60, 80), 5, 5, 55, 75)
    colours = distinct_colours(2)
    for masks in ([small, large], [large, small]):
        out = draw_overlay(GREY, masks)
        of_small, of_large = colours if masks[0] is small else colours[::-1]
        assert (out[20, 30] == of_small).all()  # an outline
        assert (out[5, 5] == of_large).all()
        assert np.abs(out[25, 35] - (55 + 0.45 * of_small.astype(float))).max() <= 1
        assert np.abs(out[10, 10] - (55 + 0.45 * of_large.astype(float))).max() <= 1
        assert (
            np.abs(out[25, 29] - (55 + 0.45 * of_large.astype(float))).max() <= 1
        )  # no second line beside it


def test_a_photo_larger_than_one_band() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 40, 3), dtype=np.uint8)
    mask = box((300, 40), 100, 5, 280, 35)
    out = draw_overlay(pixels, [mask])
    assert np.array_equal(out[~mask], pixels[~mask])
    inside = ndimage.binary_erosion(mask)
    expected = 0.55 * pixels + 0.45 * distinct_colours(1)[0]
    assert np.abs(out[inside] - expected[inside]).max() <= 1


def test_the_photo_itself_is_not_touched() -> None:
    pixels = GREY.copy()
    draw_overlay(pixels, [box((60, 80), 1, 1, 9, 9)], Prompts(boxes=[[1, 1, 5, 5]]))
    assert np.array_equal(pixels, GREY)


def test_no_masks_is_the_photo() -> None:
    assert np.array_equal(draw_overlay(GREY, []), GREY)


def test_arrays_tensors_and_rle_look_the_same() -> None:
    masks = np.stack([box((60, 80), 3, 3, 30, 30), box((60, 80), 20, 20, 50, 70)])
    out = draw_overlay(GREY, masks)
    assert np.array_equal(out, draw_overlay(GREY, torch.from_numpy(masks)))
    assert np.array_equal(out, draw_overlay(GREY, [encode(mask) for mask in masks]))


@pytest.mark.parametrize("thickness", [1, 2, 3, 6])
def test_outlines_are_an_erosion(thickness: int) -> None:
    y, x = np.mgrid[0:70, 0:90]
    mask = (np.sin(x / 11) + np.cos(y / 13) > 0.3) | ((x - 40) ** 2 + (y - 30) ** 2 < 200)
    plus, square = ndimage.generate_binary_structure(2, 1), np.ones((3, 3), bool)
    eroded = mask
    for step in range(thickness):
        eroded = ndimage.binary_erosion(eroded, square if step % 2 else plus, border_value=1)
    assert np.array_equal(outlines(mask.astype(np.uint16), thickness), mask & ~eroded)


def test_the_edge_of_the_photo_is_no_outline() -> None:
    assert not outlines(np.ones((9, 9), np.uint16), 3).any()
    half = np.zeros((9, 9), np.uint16)
    half[:, 4:] = 1
    assert np.array_equal(outlines(half, 1), box((9, 9), 0, 4, 9, 5))


@pytest.mark.parametrize(("side", "width"), [(100, 1), (500, 1), (1350, 3)])
def test_lines_are_wider_on_larger_photos(side: int, width: int) -> None:
    pixels = np.zeros((20, side, 3), np.uint8)
    out = draw_overlay(pixels, [box((20, side), 0, 30, 20, side)])
    colour = distinct_colours(1)[0]
    assert (out[10, 30 : 30 + width] == colour).all()
    assert (out[10, 30 + width] != colour).any()


def test_tiny_photos() -> None:
    out = draw_overlay(np.zeros((1, 1, 3), np.uint8), [np.ones((1, 1), bool)])
    assert (out[0, 0] > 0).any()
    draw_overlay(
        np.zeros((1, 1, 3), np.uint8),
        [np.zeros((1, 1), bool)],
        Prompts(points=[[[0, 0]]], labels=[[1]], boxes=[[0, 0, 1, 1]]),
    )


# ---------------------------------------------------------------------------------- prompts


def count(out: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(out.astype(int) - colour) <= 6).all(-1).sum())


def test_points_are_green_and_red_with_a_sign() -> None:
    black = np.zeros((100, 400, 3), np.uint8)
    front = draw_overlay(black, [], Prompts(points=[[[100.2, 50.4]]], labels=[[1]]))
    back = draw_overlay(black, [], Prompts(points=[[[100.2, 50.4]]], labels=[[0]]))
    assert count(front, GREEN) > 10
    assert count(front, RED) == 0
    assert count(back, RED) > 10
    assert count(back, GREEN) == 0
    assert (front[50, 100] == 255).all()  # the white sign, in the middle of the disc
    assert (back[50, 100] == 255).all()
    assert count(front, (255, 255, 255)) > count(back, (255, 255, 255))  # a plus has one bar more
    rows, columns = np.nonzero(front.any(-1))
    assert abs(rows.mean() - 50) <= 0.5
    assert abs(columns.mean() - 100) <= 0.5


def test_boxes_in_either_corner_order() -> None:
    black = np.zeros((100, 120, 3), np.uint8)
    out = draw_overlay(black, [], Prompts(boxes=[[20, 30, 90, 80]]))
    assert tuple(out[30, 50]) == GREEN
    assert tuple(out[80, 90]) == GREEN
    assert (out[55, 55] == 0).all()
    assert np.array_equal(
        out, draw_overlay(black, [], Prompts(boxes=torch.tensor([[90, 80, 20, 30]])))
    )


def test_ragged_points_tensors_and_the_padding_label() -> None:
    black = np.zeros((100, 400, 3), np.uint8)
    ragged = Prompts(points=[[[50, 50]], [[150, 50], [250, 50]]], labels=[[1], [0, 1]])
    padded = Prompts(
        points=torch.tensor([[[50.0, 50], [9, 9]], [[150, 50], [250, 50]]]),
        labels=torch.tensor([[1, -1], [0, 1]]),
    )
    out = draw_overlay(black, [], ragged)
    assert np.array_equal(out, draw_overlay(black, [], padded))
    assert count(out, RED) > 10
    assert count(out, GREEN) > 20


def test_points_at_the_rim_are_cut_off_and_those_outside_unseen() -> None:
    black = np.zeros((100, 400, 3), np.uint8)
    assert count(draw_overlay(black, [], Prompts(points=[[[0, 0]]], labels=[[1]])), GREEN) > 2
    far = draw_overlay(black, [], Prompts(points=[[[900, 900]]], labels=[[1]]))
    assert np.array_equal(far, black)


def test_points_need_labels() -> None:
    with pytest.raises(InputError, match="give each point a label"):
        draw_overlay(GREY, [], Prompts(points=[[[1, 2]]]))
    with pytest.raises(InputError, match="give each point a label"):
        draw_overlay(GREY, [], Prompts(points=[[[1, 2], [3, 4]]], labels=[[1]]))


# ------------------------------------------------------------------------------------ files


def test_png_is_exact_and_jpeg_is_close(tmp_path: Path) -> None:
    masks = [box((60, 80), 10, 20, 40, 60)]
    out = draw_overlay(GREY, masks)
    write_overlay(tmp_path / "a.overlay.png", GREY, masks)
    write_overlay(tmp_path / "a.JPG", GREY, masks)
    with Image.open(tmp_path / "a.overlay.png") as picture:
        assert np.array_equal(np.array(picture), out)
    with Image.open(tmp_path / "a.JPG") as picture:
        assert picture.format == "JPEG"
        assert np.abs(np.array(picture).astype(int) - out).mean() < 8


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.xyz: an overlay is PNG or JPEG"):
        write_overlay(tmp_path / "a.xyz", GREY, [])
    with pytest.raises(OutputError, match="there is no folder"):
        write_overlay(tmp_path / "gone" / "a.png", GREY, [])
    with pytest.raises(InputError, match="mask 0: is 5 x 5, its image 60 x 80"):
        write_overlay(tmp_path / "a.png", GREY, [np.zeros((5, 5), bool)])
    assert list(tmp_path.iterdir()) == []
