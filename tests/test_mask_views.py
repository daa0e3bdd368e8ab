"""What an answer converts to and draws: of each object's best mask, on the image as it is shown."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samfast import Masks, Prompts
from samfast.errors import InputError, MissingExtraError, NumericsError
from samfast.outputs import draw_overlay, encode
from samfast.types import FilterCounts, MaskRecords

PHOTO = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def answer() -> Masks:
    """Two objects of two masks; the second is the best of the first object, with a hole."""
    masks = torch.zeros((2, 2, 40, 60), dtype=torch.bool)
    masks[0, 1, 10:30, 20:50] = True
    masks[0, 1, 15:20, 25:35] = False
    masks[1, 0, 0:5, 0:7] = True
    masks[:, :, 39, 59] = torch.tensor([[True, False], [False, True]])
    return Masks(masks, torch.tensor([[0.5, 0.9], [0.8, 0.1]]), torch.zeros(2, 2, 8, 8))


def records() -> MaskRecords:
    best = answer().best().numpy()
    return MaskRecords(
        ({"segmentation": encode(mask)} for mask in best), (40, 60), FilterCounts(1, 3, 3, 3, 3)
    )


def test_polygons_have_the_holes_of_the_best_masks() -> None:
    (first,), (second,) = answer().polygons()
    assert sorted(first.exterior.tolist()) == [[20, 10], [20, 30], [50, 10], [50, 30]]
    (hole,) = first.holes
    assert sorted(hole.tolist()) == [[25, 15], [25, 20], [35, 15], [35, 20]]
    assert second.exterior.max(0).tolist() == [7, 5]
    assert not second.holes


def test_cutouts_are_cropped_and_transparent_outside_the_mask() -> None:
    first, second = answer().cutout(PHOTO)
    assert first.shape == (20, 30, 4)
    assert np.array_equal(first[..., :3], PHOTO[10:30, 20:50])
    assert np.array_equal(first[..., 3] == 255, answer().masks[0, 1, 10:30, 20:50].numpy())
    assert second.shape == (5, 7, 4)
    empty = Masks(torch.zeros((1, 1, 40, 60)).bool(), torch.ones(1, 1), torch.zeros(1, 1, 8, 8))
    assert empty.cutout(PHOTO)[0].shape == (0, 0, 4)
    with pytest.raises(InputError, match="a mask of 40 x 60 for a photo of 60 x 40"):
        answer().cutout(np.ascontiguousarray(PHOTO.transpose(1, 0, 2)))


def test_images_are_turned_upright_as_embed_turns_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(PHOTO)))
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = answer().cutout(tmp_path / "turned.png")
    assert np.array_equal(upright[0], answer().cutout(PHOTO)[0])


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if that package were not installed."""
    real = builtins.__import__

    def refuse(module: str, *args: Any, **named: Any) -> Any:
        if module.partition(".")[0] == name:
            raise ImportError(f"No module named {name!r}")
        return real(module, *args, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.filterwarnings("ignore")
def test_detections_of_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    masks = answer()
    masks.masks[1, 0] = False
    detections = masks.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == [[20, 10, 50, 30], [0, 0, 0, 0]]
    assert np.array_equal(detections.mask, masks.best().numpy())
    assert detections.confidence.tolist() == pytest.approx([0.9, 0.8])
    assert detections.box_area.tolist() == [600, 0]
    assert detections.area.tolist() == [550, 0]
    annotator = supervision.MaskAnnotator(color_lookup=supervision.ColorLookup.INDEX)
    assert (annotator.annotate(PHOTO.copy(), detections) != PHOTO).any(-1).sum() > 500


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without("supervision", monkeypatch)
    with pytest.raises(MissingExtraError, match="pip install supervision"):
        answer().to_supervision()
    without("matplotlib", monkeypatch)
    with pytest.raises(MissingExtraError, match="pip install matplotlib"):
        answer().plot(PHOTO)


def test_plots_are_overlays_in_axes(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    prompts = Prompts(points=[[[30, 12]]], labels=[[1]])
    best = answer().best()
    for axes, want in (
        (answer().plot(tmp_path / "photo.png"), draw_overlay(PHOTO, best)),
        (answer().plot(PHOTO, prompts), draw_overlay(PHOTO, best, prompts)),
        (records().plot(PHOTO), draw_overlay(PHOTO, best)),
    ):
        (shown,) = axes.get_images()
        assert np.array_equal(shown.get_array(), want)
        assert not axes.axison
    mine = pyplot.subplots()[1]
    assert answer().plot(PHOTO, axes=mine) is mine
    pyplot.close("all")
    with pytest.raises(InputError, match="its image 20 x 20"):
        answer().plot(PHOTO[:20, :20])


@pytest.mark.parametrize("make", [answer, records])
def test_notebooks_show_a_thumbnail(make: Callable[[], Any]) -> None:
    with Image.open(io.BytesIO(make()._repr_png_())) as picture:
        pixels = np.array(picture)
    assert pixels.shape == (40, 60, 3)
    best = answer().best().numpy()
    ground = pixels[~best.any(0)]
    assert (ground == ground[0]).all()
    assert (pixels[best.any(0)] != ground[0]).any(-1).all()


def test_thumbnails_are_small_and_none_of_nothing() -> None:
    masks = torch.zeros((1, 1, 700, 1000), dtype=torch.bool)
    masks[..., 100:600, 200:900] = True
    large = Masks(masks, torch.ones(1, 1), torch.zeros(1, 1, 8, 8))
    with Image.open(io.BytesIO(large._repr_png_() or b"")) as picture:
        assert picture.size == (250, 175)
    assert replace(large, masks=masks[:0], iou=torch.ones(0, 1))._repr_png_() is None
    assert MaskRecords([], (9, 9), FilterCounts(1, 3, 0, 0, 0))._repr_png_() is None


def test_an_answer_that_is_not_finite_is_not_converted() -> None:
    def check() -> None:
        raise NumericsError("image 0, object 0")

    bad = replace(answer(), check=check)
    for convert in (
        bad.polygons,
        bad._repr_png_,
        lambda: bad.cutout(PHOTO),
        lambda: bad.plot(PHOTO),
        lambda: bad == answer(),
    ):
        with pytest.raises(NumericsError):
            convert()
