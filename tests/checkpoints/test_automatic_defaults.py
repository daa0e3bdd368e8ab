"""A checkpoint's own defaults of automatic masks: who takes them and who does not."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import samfast
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.segmenter import Segmenter
from samfast.checkpoints.known_checkpoints import KNOWN
from samfast.checkpoints.lookup import place


@pytest.fixture
def options(monkeypatch):
    """The options that each call of the segmenter gets."""
    seen: list[AutomaticOptions] = []

    def call(self, images, options, **others):
        seen.append(options)
        yield from ()

    monkeypatch.setattr(Segmenter, "__call__", call)
    return seen


@pytest.fixture(scope="module")
def packaged():
    return samfast.load("vit_xs", device="cpu")


def test_only_vit_xs_has_defaults_of_its_own():
    assert {name for name, known in KNOWN.items() if known.automatic} == {"vit_xs"}
    AutomaticOptions(**KNOWN["vit_xs"].automatic)  # the names and values are valid


def test_segment_takes_the_checkpoint_s_unless_told_otherwise(packaged, options):
    image = np.zeros((8, 8, 3), np.uint8)
    packaged.segment([image])
    packaged.segment([image], min_mask_region_area=7, pred_iou_thresh=0.5)
    own = KNOWN["vit_xs"].automatic
    assert {name: getattr(options[0], name) for name in own} == own
    assert options[1].min_mask_region_area == 7
    assert options[1].pred_iou_thresh == 0.5


def test_other_weights_keep_those_of_the_original(options, tmp_path):
    shutil.copy(place(KNOWN["vit_xs"]), tmp_path / "mine.safetensors")
    for checkpoint in ("random", tmp_path / "mine.safetensors"):
        sam = samfast.load("vit_xs", checkpoint=checkpoint, device="cpu")
        sam.segment([np.zeros((8, 8, 3), np.uint8)])
    original = AutomaticOptions()
    for each in options:
        assert each.pred_iou_thresh == original.pred_iou_thresh == 0.88
        assert each.stability_score_thresh == original.stability_score_thresh == 0.95
        assert each.min_mask_region_area == 0


def test_the_generator_keeps_those_of_the_original(packaged, monkeypatch):
    given = []
    monkeypatch.setattr(
        packaged, "segment", lambda images, **options: given.append(options) or [[]]
    )
    samfast.SamAutomaticMaskGenerator(packaged).generate(np.zeros((8, 8, 3), np.uint8))
    assert (given[0]["pred_iou_thresh"], given[0]["stability_score_thresh"]) == (0.88, 0.95)
    assert given[0]["min_mask_region_area"] == 0


@pytest.mark.slow
def test_an_ordinary_photo_has_ten_to_sixty_masks(packaged, photo_data):
    (records,) = packaged.segment([photo_data / "val" / "images" / "clothing_0026.jpg"])
    assert 10 <= len(records) <= 60
