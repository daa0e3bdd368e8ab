"""samapi: what QuPath's extension sends, and what it reads of the answers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import samfast
from samfast.coco_rle import encode
from samfast.masks import nms
from samfast.outputs import decode
from samfast.serve.wires.samapi import _features
from tests.outputs.test_polygons import filled
from tests.serve.wires.conftest import BOX, CLICK, best

QUPATH = {"accept": "application/json", "Content-Type": "application/json; charset=utf-8"}


def ask(tool, photo, path="/sam/", **body):
    """`SAMDetectionTask` or `SAMAutoMaskTask`; Gson leaves out what is null."""
    return tool.post(path, json={"type": "vit_l", "b64img": photo.base64, **body}, headers=QUPATH)


def automask(tool, photo, **body):
    options = {
        "points_per_side": 5,
        "points_per_batch": 64,
        "pred_iou_thresh": 0.6,
        "stability_score_thresh": 0.8,
        "stability_score_offset": 1.0,
        "box_nms_thresh": 0.7,
        "crop_n_layers": 0,
        "crop_nms_thresh": 0.7,
        "crop_overlap_ratio": 0.34,
        "crop_n_points_downscale_factor": 1,
        "min_mask_region_area": 0,
        "output_type": "Multi-mask (smallest)",
        "include_image_edge": False,
    }
    answer = ask(tool, photo, "/sam/automask/", **(options | body))
    assert answer.status_code == 200, answer.text
    return answer.json()


def mask_of(feature, photo):
    assert feature["type"] == "Feature"
    geometry = feature["geometry"]
    polygons = geometry["coordinates"]
    if geometry["type"] == "Polygon":
        polygons = [polygons]
    count = np.zeros((photo.height, photo.width), int)
    for exterior, *holes in polygons:
        assert exterior[0] == exterior[-1]
        count += filled(np.array(exterior), count.shape)
        for hole in holes:
            count -= filled(np.array(hole), count.shape)
    return count == 1


def test_a_point(tool, photo, predict):
    point = [int(CLICK[0]), int(CLICK[1])]
    answer = ask(tool, photo, point_coords=[point], point_labels=[1], multimask_output=False)
    (feature,) = answer.json()
    masks = predict(multimask=False, points=[point], labels=[1])
    assert np.array_equal(mask_of(feature, photo), best(masks))
    assert feature["properties"] == {
        "object_idx": 0,
        "label": "object",
        "quality": pytest.approx(float(masks.iou[0, 0]), abs=1e-5),
        "sam_model": "vit_xs",
    }


def test_three_masks_each_with_its_own_quality(tool, photo, predict):
    points, labels = [[20, 20], [300, 150]], [0, 1]
    answer = ask(tool, photo, point_coords=points, point_labels=labels, multimask_output=True)
    masks = predict(multimask=True, points=points, labels=labels)
    features = answer.json()
    assert len(features) == 3
    for index, feature in enumerate(features):
        assert np.array_equal(mask_of(feature, photo), masks.masks[0, index].numpy())
        assert feature["properties"]["object_idx"] == index
        assert feature["properties"]["quality"] == pytest.approx(
            float(masks.iou[0, index]), abs=1e-5
        )


def test_a_rectangle(tool, photo, predict):
    (feature,) = ask(tool, photo, bbox=BOX, multimask_output=False).json()
    assert np.array_equal(mask_of(feature, photo), best(predict(multimask=False, box=BOX)))


def corners_of(records):
    boxes = np.array([record["bbox"] for record in records], float)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


@pytest.fixture(scope="module")
def all_masks(photo):
    """All masks of the grid that pass the filters of `automask`, by the engine itself."""
    engine = samfast.load("vit_xs", device="cpu", recipe="fp32")
    image = np.asarray(Image.open(io.BytesIO(photo.data)))
    options = {
        "points_per_side": 5,
        "pred_iou_thresh": 0.6,
        "stability_score_thresh": 0.8,
        "stability_score_offset": 1.0,
        "min_mask_region_area": 0,
    }
    every = engine.segment([image], box_nms_thresh=1.0, **options)[0]
    kept = engine.segment([image], box_nms_thresh=0.7, **options)[0]
    assert len(every) > len(kept) > 3
    return list(every), list(kept)


def test_everything_of_the_best_quality_is_the_engines_own(tool, photo, all_masks):
    _, kept = all_masks
    whole = automask(tool, photo, output_type="Multi-mask (best quality)", include_image_edge=True)
    assert len(whole) == len(kept)
    for feature, record in zip(whole, kept, strict=True):
        assert np.array_equal(mask_of(feature, photo), decode(record["segmentation"]))
        assert feature["properties"]["quality"] == pytest.approx(record["predicted_iou"], abs=1e-5)


ORDER = {
    "Multi-mask (largest)": lambda record: record["area"],
    "Multi-mask (smallest)": lambda record: -record["area"],
    "Multi-mask (best quality)": lambda record: record["predicted_iou"],
}


@pytest.mark.parametrize(
    ("output_type", "edge"),
    [
        ("Multi-mask (all)", True),
        ("Multi-mask (smallest)", True),
        *((kind, False) for kind in ORDER),
    ],
)
def test_everything_by_output_type(tool, photo, all_masks, output_type, edge):
    records, _ = all_masks
    boxes = corners_of(records)
    if not edge:
        inside = (np.abs(boxes - [0, 0, photo.width, photo.height]) > 20).any(1)
        records = [record for record, stays in zip(records, inside, strict=True) if stays]
        boxes = boxes[inside]
    if output_type in ORDER:
        scores = np.array([ORDER[output_type](record) for record in records], float)
        records = [records[i] for i in nms.keep(boxes, scores, 0.7)]
    features = automask(tool, photo, output_type=output_type, include_image_edge=edge)
    assert len(features) == len(records)
    for feature, record in zip(features, records, strict=True):
        assert np.array_equal(mask_of(feature, photo), decode(record["segmentation"]))


def test_weights_version_and_progress(tool, photo):
    (weights,) = tool.get("/sam/weights/", params={"type": "vit_l"}).json()
    assert weights.keys() == {"type", "name", "url"}
    answer = ask(tool, photo, bbox=BOX, checkpoint_url=weights["url"])
    assert answer.status_code == 200
    assert tool.get("/sam/version/").text
    assert tool.get("/sam/progress/").json() == {"message": None, "percent": -1}
    assert tool.get("/sam/weights/cancel/").status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/sam/", {"type": "sam2_l", "bbox": BOX}, 422, "vit_"),
        (
            "/sam/",
            {"bbox": BOX, "checkpoint_url": "https://a/mobile_sam.pt"},
            422,
            "checkpoint_url",
        ),
        ("/sam/", {}, 422, "neither a point nor a box"),
        ("/sam/", {"bbox": BOX, "b64mask": "AA=="}, 422, "b64mask"),
        ("/sam/", {"bbox": [1, 2, 3]}, 422, "bbox"),
        ("/sam/", {"point_coords": [[1, 1]]}, 422, "1 points and 0 labels"),
        ("/sam/", {"bbox": BOX, "b64img": "!"}, 422, "base64"),
        ("/sam/automask/", {"output_type": "Single mask"}, 422, "Multi-mask (all)"),
        ("/sam/automask/", {"crop_n_layers": 1, "output_type": "Multi-mask (all)"}, 422, "crop"),
        ("/sam/automask/", {"points_per_side": 1000}, 422, "points_per_side"),
        ("/sam/weights/", {"name": "a", "url": "https://a/b.pth"}, 403, "--checkpoint"),
    ],
)
def test_mistakes_are_said_in_fastapis_form(tool, photo, path, body, status, said):
    answer = ask(tool, photo, path, **body)
    assert answer.status_code == status
    assert said in answer.json()["detail"]


def test_an_empty_mask_has_no_feature():
    masks = [np.zeros((4, 5), bool), np.ones((4, 5), bool)]
    records = [{"segmentation": encode(mask), "predicted_iou": 0.5} for mask in masks]
    (feature,) = _features(records, "vit_xs")
    assert feature["properties"]["object_idx"] == 1
