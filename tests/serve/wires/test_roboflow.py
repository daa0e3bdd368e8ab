"""Roboflow inference: requests as its clients send them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from scipy import ndimage

from samfast import coco_rle
from tests.outputs.test_contours import drawn
from tests.serve.wires.conftest import BOX, CLICK, best


def image_of(photo):
    return {"type": "base64", "value": photo.base64}


def ask(tool, path, **body):
    return tool.post(path, json={"api_key": "key", **body}, params={"api_key": "key"})


def good(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()


def npz(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    return np.load(io.BytesIO(answer.content))


def largest_piece(mask):
    labels, count = ndimage.label(mask)
    pieces = [ndimage.binary_fill_holes(labels == i + 1) for i in range(count)]
    return max(pieces, key=lambda piece: piece.sum())


def segment(tool, photo, **body):
    return ask(tool, "/sam/segment_image", image=image_of(photo), sam_version_id="vit_h", **body)


def test_one_click(tool, photo, predict):
    body = good(segment(tool, photo, point_coords=[CLICK], point_labels=[1]))
    expected = best(predict(multimask=True, points=[CLICK], labels=[1]))
    (polygon,) = body["masks"]
    shape = (photo.height, photo.width)
    assert np.array_equal(drawn(np.array(polygon), shape), largest_piece(expected))
    assert np.array(body["low_res_masks"][0]).max() < 256
    assert body["time"] > 0


def test_clicks_and_a_padding_point(tool, photo, predict):
    points, labels = [CLICK, (20.0, 20.0)], [1, 0]
    answer = segment(
        tool, photo, point_coords=[*points, (0, 0)], point_labels=[*labels, -1], format="binary"
    )
    masks = predict(multimask=False, points=points, labels=labels)
    assert np.array_equal(npz(answer)["masks"][0] > 0, best(masks))
    low_res = npz(answer)["low_res_masks"]
    assert np.allclose(low_res, masks.low_res[0].numpy(), atol=1e-3)


def test_a_box_as_two_labelled_points(tool, photo, predict):
    answer = segment(
        tool, photo, point_coords=[BOX[:2], BOX[2:]], point_labels=[2, 3], format="binary"
    )
    assert np.array_equal(npz(answer)["masks"][0] > 0, best(predict(multimask=False, box=BOX)))


def test_an_image_by_its_name_and_the_mask_of_the_last_answer(tool, photo, engine):
    named = {"image_id": "a cup", "format": "binary"}
    first = segment(tool, photo, point_coords=[CLICK], point_labels=[1], **named)
    clicks = {"point_coords": [CLICK, (250, 300)], "point_labels": [1, 1], **named}
    plain = npz(ask(tool, "/sam/segment_image", **clicks))["masks"]
    again = npz(segment(tool, photo, point_coords=[CLICK], point_labels=[1], **named))
    assert np.array_equal(again["masks"], npz(first)["masks"])
    refined = npz(ask(tool, "/sam/segment_image", has_mask_input=True, **clicks))["masks"]
    assert not np.array_equal(plain, refined)


def test_embeddings(tool, photo, engine):
    answer = ask(tool, "/sam/embed_image", image=image_of(photo), format="binary")
    features = np.load(io.BytesIO(answer.content))
    body = good(ask(tool, "/sam/embed_image", image=image_of(photo)))
    assert features.shape == (1, 256, 64, 64)
    assert np.allclose(body["embeddings"], features, atol=1e-6)


def segment2(tool, photo, prompts, **body):
    return ask(
        tool,
        "/sam2/segment_image",
        image=image_of(photo),
        prompts={"prompts": prompts},
        sam2_version_id="hiera_tiny",
        **body,
    )


def centred(x0, y0, x1, y1):
    return {"x": (x0 + x1) / 2, "y": (y0 + y1) / 2, "width": x1 - x0, "height": y1 - y0}


def test_objects_in_the_form_of_sam2(tool, photo, predict):
    prompts = [
        {"points": [{"x": CLICK[0], "y": CLICK[1], "positive": True}]},
        {"box": centred(*BOX)},
    ]
    expected = [
        best(predict(multimask=True, points=[CLICK], labels=[1])),
        best(predict(multimask=True, box=BOX)),
    ]
    body = good(segment2(tool, photo, prompts, format="rle"))
    for prediction, mask in zip(body["predictions"], expected, strict=True):
        assert prediction["format"] == "rle"
        assert np.array_equal(coco_rle.decode(prediction["masks"]), mask)
        assert 0 < prediction["confidence"] <= 1.1
    binary = npz(segment2(tool, photo, prompts, format="binary"))
    assert np.array_equal(binary["masks"] > 0, np.stack(expected))
    assert binary["low_res_masks"].shape == (2, 256, 256)
    polygons = good(segment2(tool, photo, prompts))["predictions"]
    for prediction, mask in zip(polygons, expected, strict=True):
        assert prediction["format"] == "polygon"
        union = np.zeros(mask.shape, bool)
        for polygon in prediction["masks"]:
            union |= drawn(np.array(polygon), mask.shape)
        assert np.array_equal(union, ndimage.binary_fill_holes(mask) & union)
        assert not (mask & ~union).any()


def test_one_mask_without_multimask_and_prompts_as_a_list(tool, photo, predict):
    answer = ask(
        tool,
        "/sam2/segment_image",
        image=image_of(photo),
        prompts=[{"points": [{"x": CLICK[0], "y": CLICK[1], "positive": True}]}],
        multimask_output=False,
        format="rle",
    )
    (prediction,) = good(answer)["predictions"]
    expected = best(predict(multimask=False, points=[CLICK], labels=[1]))
    assert np.array_equal(coco_rle.decode(prediction["masks"]), expected)


def test_an_image_embedded_under_a_name(tool, photo):
    body = good(ask(tool, "/sam2/embed_image", image=image_of(photo)))
    again = ask(
        tool,
        "/sam2/segment_image",
        image_id=body["image_id"],
        prompts=[{"box": centred(*BOX)}],
        format="rle",
    )
    assert coco_rle.area_of(good(again)["predictions"][0]["masks"]) > 0


CLICKED = {"point_coords": [CLICK], "point_labels": [1]}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (
            "/sam/segment_image",
            {"image": {"type": "url", "value": "http://a"}, **CLICKED},
            422,
            "none",
        ),
        (
            "/sam/segment_image",
            {"image": {"type": "numpy", "value": "gA=="}, **CLICKED},
            422,
            "pickle",
        ),
        ("/sam/segment_image", {"image_id": "never seen", **CLICKED}, 404, "never seen"),
        ("/sam/segment_image", {"image_id": "a" * 257, **CLICKED}, 422, "image_id"),
        ("/sam/segment_image", {}, 422, "neither a point nor a box"),
        (
            "/sam/segment_image",
            {"image_id": "a cup", "embeddings": [1], **CLICKED},
            422,
            "embeddings",
        ),
        ("/sam/segment_image", {"has_mask_input": True, **CLICKED}, 422, "earlier mask"),
        ("/sam/segment_image", {"point_coords": [CLICK]}, 422, "0 point_labels"),
        ("/sam/segment_image", {"point_coords": [CLICK], "point_labels": [2]}, 422, "label 3"),
        ("/sam2/segment_image", {"prompts": []}, 422, "no prompts"),
        ("/sam2/segment_image", {"prompts": [{}]}, 422, "neither a point nor a box"),
        ("/sam2/segment_image", {"prompts": 3}, 422, "prompts"),
    ],
)
def test_mistakes_are_said_as_the_client_reads_them(tool, photo, path, body, status, said):
    defaults = {} if "image_id" in body else {"image": image_of(photo)}
    answer = ask(tool, path, **(defaults | body))
    assert answer.status_code == status
    assert said in answer.json()["message"]
