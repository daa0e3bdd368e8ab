"""Colours that differ, fills and outlines where they belong, prompts drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from samfast.errors import InputError, OutputError
from samfast.outputs import distinct_colours, draw_overlay, encode, legend_of, write_overlay
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


def colour_of(out: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The colour of most pixels of a mask on a plain photo."""
    values, counts = np.unique(out[mask], axis=0, return_counts=True)
    return values[counts.argmax()].astype(float)


def test_fill_outline_shade_and_the_rest() -> None:
    mask = box((60, 80), 10, 20, 40, 60)
    out = draw_overlay(GREY, [mask])
    inner = ndimage.binary_erosion(mask)
    shaded = inner & ~ndimage.binary_erosion(inner, np.ones((3, 3)))
    fill = colour_of(out, mask)
    assert out.dtype == np.uint8
    assert out.shape == GREY.shape
    assert (out[~mask] == 100).all()
    assert np.ptp(fill) > 30
    assert (out[inner & ~shaded] == fill).all()
    assert np.abs(out[shaded] - 0.65 * fill).max() <= 1
    line = out[mask & ~inner]
    assert (line == line[0]).all()
    assert line[0].mean() > fill.mean() + 30


def test_a_fill_keeps_the_texture_of_the_photo_and_not_its_colour() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (60, 80, 1))
    red, blue = (
        (noise + np.array(base)).astype(np.uint8) for base in ((150, 40, 40), (30, 30, 190))
    )
    mask = box((60, 80), 5, 5, 55, 75)
    inside = box((60, 80), 12, 12, 48, 68)
    for photo in (red, blue):
        out = draw_overlay(photo, [mask]).astype(float)
        assert np.corrcoef(out[inside].mean(1), photo[inside].mean(1))[0, 1] > 0.99
        lab, below = perceptual(out[inside]), perceptual(photo[inside].astype(float))
        assert np.linalg.norm(lab.mean(0)[1:] - below.mean(0)[1:]) > 40


@pytest.mark.parametrize("base", [(200, 90, 40), (40, 120, 200), (60, 160, 60), (220, 60, 160)])
def test_colours_stand_out_from_the_photo_and_from_neighbours(base: tuple[int, int, int]) -> None:
    photo = np.full((120, 160, 3), base, np.uint8)
    tiles = [
        box((120, 160), y, x, y + 30, x + 40) for y in range(0, 120, 30) for x in range(0, 160, 40)
    ]
    out = draw_overlay(photo, tiles)
    lab = perceptual(np.array([colour_of(out, tile) for tile in tiles]))
    photo_lab = perceptual(np.array([base], float))[0]
    assert np.linalg.norm(lab - photo_lab, axis=1).min() > 30
    grid = lab.reshape(4, 4, 3)
    for axis in (0, 1):
        assert np.linalg.norm(np.diff(grid, axis=axis), axis=-1).min() > 15


def test_each_mask_has_its_own_colour_and_smaller_ones_are_on_top() -> None:
    small, large = box((60, 80), 20, 30, 40, 60), box((60, 80), 5, 5, 55, 75)
    both = draw_overlay(GREY, [small, large])
    fill, around = colour_of(both, small), colour_of(both, large & ~small)
    assert np.linalg.norm(fill - around) > 60
    assert (both[30, 28] == around).all()  # no second line beside it
    assert (colour_of(draw_overlay(GREY, [large, small]), small) == fill).all()


def test_a_photo_larger_than_one_band() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 40, 3), dtype=np.uint8)
    mask = box((300, 40), 100, 5, 280, 35)
    out = draw_overlay(pixels, [mask])
    assert np.array_equal(out[~mask], pixels[~mask])
    parts = [draw_overlay(pixels[rows], [mask[rows]]) for rows in (slice(0, 200), slice(100, 300))]
    inside = ndimage.binary_erosion(mask, iterations=3)
    assert np.array_equal(parts[0][:190][inside[:190]], out[:190][inside[:190]])
    assert np.array_equal(parts[1][90:][inside[190:]], out[190:][inside[190:]])


# ------------------------------------------------------------------------- numbers and legend


def written(out: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The places (y, x) of the pixels of a mask that are nearly white, as numbers are."""
    return np.argwhere((out > 225).all(-1) & mask)


def test_each_of_several_masks_bears_its_number() -> None:
    grey = np.full((400, 600, 3), 100, np.uint8)
    tiles = [box((400, 600), 20, 60 * i, 380, 60 * i + 50) for i in range(10)]
    out = draw_overlay(grey, tiles)
    for tile in tiles:
        y, x = written(out, tile).mean(0)
        assert abs(y - 200) < 160
        assert abs(x - np.argwhere(tile)[:, 1].mean()) < 3
    assert len({len(written(out, tile)) for tile in tiles}) > 5  # digits of different shapes
    # The numbers are those of the list, not of the order in which masks are drawn.
    large = box((400, 600), 0, 0, 400, 300)
    first = draw_overlay(grey, [large, tiles[9]])
    last = draw_overlay(grey, [tiles[9], large])
    zero, one = written(first, large), written(last, large)
    assert len(zero) and len(one) and not np.array_equal(zero, one)


def test_a_number_is_in_the_visible_part_and_clear_of_points() -> None:
    grey = np.full((400, 600, 3), 100, np.uint8)
    large, small = box((400, 600), 0, 0, 400, 600), box((400, 600), 100, 250, 300, 599)
    out = draw_overlay(grey, [large, small])
    assert len(written(out, large & ~small)) > 10
    y, x = written(out, large & ~small).mean(0).astype(int)
    click = Prompts(points=[[[x, y]]], labels=[[1]])
    around = box((400, 600), y - 10, x - 10, y + 11, x + 11)
    assert len(written(out, around))
    unnumbered = draw_overlay(grey, [large], click)
    assert np.array_equal(draw_overlay(grey, [large, small], click)[around], unnumbered[around])


def test_one_mask_and_tiny_masks_bear_no_number() -> None:
    grey = np.full((400, 600, 3), 100, np.uint8)
    assert not len(
        written(draw_overlay(grey, [box((400, 600), 50, 50, 300, 300)]), grey[..., 0] > 0)
    )
    tiny = [box((400, 600), 10, 10 + 20 * i, 14, 14 + 20 * i) for i in range(3)]
    assert not len(written(draw_overlay(grey, tiny), grey[..., 0] > 0))


def test_a_legend_has_a_line_for_each_mask_below_the_photo() -> None:
    grey = np.full((200, 600, 3), 100, np.uint8)
    masks = [box((200, 600), 20, 200 * i + 20, 180, 200 * i + 180) for i in range(3)]
    plain = draw_overlay(grey, masks)
    out = draw_overlay(grey, masks, legend=["predicted IoU 0.9", "predicted IoU 0.8", "background"])
    assert np.array_equal(out[:200], plain)
    below = out[200:]
    assert below.shape[0] > 15
    for mask in masks:
        fill = colour_of(plain, mask)
        # A fill is half the colour of the legend's square and half the grey of the photo.
        square = np.clip(2 * fill - 100, 0, 255)
        assert (np.abs(below - square).max(-1) <= 3).sum() > 50
    with pytest.raises(InputError, match="a legend of 1 lines for 3 masks"):
        draw_overlay(grey, masks, legend=["one"])
    assert np.array_equal(draw_overlay(grey, [], legend=[]), grey)


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


def test_the_legend_tells_the_masks_of_one_prompt_apart() -> None:
    def record(iou: float, box: list[int] | None) -> dict[str, object]:
        click: list[list[int]] = [] if box else [[1, 2]]
        return {"predicted_iou": iou, "input_box": box, "point_coords": click, "point_labels": []}

    box_masks = [record(iou, [1, 2, 3, 4]) for iou in (0.912, 0.8, 0.7)]
    click_masks = [record(iou, None) for iou in (0.9, 0.5)]
    assert legend_of([*box_masks, *click_masks]) == [
        "object 1, predicted IoU 0.91",
        "object 1, predicted IoU 0.80",
        "object 1, predicted IoU 0.70",
        "object 2, predicted IoU 0.90",
        "object 2, predicted IoU 0.50",
    ]
    assert legend_of([box_masks[0], click_masks[0]]) is None
    assert legend_of([]) is None
    automatic = [{"predicted_iou": 0.9, "point_coords": [[1, 2]]}] * 3
    assert legend_of(automatic) is None


@pytest.mark.parametrize("thickness", [1, 2, 3, 6])
def test_outlines_are_an_erosion(thickness: int) -> None:
    y, x = np.mgrid[0:70, 0:90]
    mask = (np.sin(x / 11) + np.cos(y / 13) > 0.3) | ((x - 40) ** 2 + (y - 30) ** 2 < 200)
    plus, square = ndimage.generate_binary_structure(2, 1), np.ones((3, 3), bool)
    eroded = [mask]
    for step in range(thickness + 1):
        shape = square if step % 2 else plus
        eroded.append(ndimage.binary_erosion(eroded[-1], shape, border_value=1))
    lines, shades = outlines(mask.astype(np.uint16), thickness)
    assert np.array_equal(lines, mask & ~eroded[-2])
    assert np.array_equal(shades, mask & ~eroded[-1])


def test_the_edge_of_the_photo_is_no_outline() -> None:
    assert not any(each.any() for each in outlines(np.ones((9, 9), np.uint16), 3))
    half = np.zeros((9, 9), np.uint16)
    half[:, 4:] = 1
    assert np.array_equal(outlines(half, 1)[0], box((9, 9), 0, 4, 9, 5))


@pytest.mark.parametrize(("side", "width"), [(100, 1), (400, 1), (1200, 4)])
def test_lines_are_wider_on_larger_photos(side: int, width: int) -> None:
    pixels = np.zeros((20, side, 3), np.uint8)
    out = draw_overlay(pixels, [box((20, side), 0, 30, 20, side)])
    line = out[10, 30]
    assert (out[10, 30 : 30 + width] == line).all()
    assert (out[10, 30 + width] != line).any()


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
