"""The packaged model: a scene in tiles has the objects of the same scene in one window."""

import numpy as np
import pytest
import skimage.data

import samfast
from samfast import coco_rle
from samfast.scenes.tile_reader import FILL

POINTS = 16


@pytest.fixture(scope="module")
def sam():
    return samfast.load("vit_xs", device="cpu")


@pytest.fixture(scope="module")
def in_one_window(sam):
    """The masks of a photo of 600 x 400 pixels that fills a part of the model's window."""
    scene = skimage.data.coffee()
    height, width = scene.shape[:2]
    window = np.full((1024, 1024, 3), FILL, dtype=np.uint8)
    window[:height, :width] = scene
    line = (np.arange(POINTS) + 0.5) / POINTS
    points = np.stack(np.meshgrid(line, line), 2).reshape(-1, 2)
    points = points[(points * 1024 < (width, height)).all(1)]
    (records,) = sam.segment([window], points_per_side=None, point_grids=[points])
    masks = [coco_rle.decode(record["segmentation"])[:height, :width] for record in records]
    return [
        mask
        for mask, record in zip(masks, records, strict=True)
        if 2 * mask.sum() >= record["area"]
    ]


@pytest.mark.parametrize(("tile", "origin"), [(1024, (0, 0)), (256, (0, 0)), (256, (5000, 777))])
def test_tiles_of_a_scene_that_fits_give_the_masks_of_one_window(sam, in_one_window, tile, origin):
    options = {"tile": tile, "overlap": tile // 4, "origin": origin, "points_per_side": POINTS}
    with sam.segment_large(skimage.data.coffee(), **options) as objects:
        masks = [coco_rle.decode(record["segmentation"]) for record in objects]
    assert len(masks) == len(in_one_window) >= 3
    flat = np.stack([mask.ravel() for mask in in_one_window]).astype(np.float32)
    for mask in masks:
        common = flat @ mask.ravel().astype(np.float32)
        union = flat.sum(1) + mask.sum() - common
        # Other points in a batch change the last bits of logits, and with them single pixels.
        assert (common / union).max() > 0.999
