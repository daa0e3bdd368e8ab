"""CVAT: what its `LambdaGateway` sends, and what its interface does with the answers."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from samfast.outputs import decode
from samfast.serve.service import SegmentationService
from samfast.serve.wires.cvat import DETECTOR, INTERACTOR, rows_of_digits
from tests.serve.wires.conftest import BOX, CLICK, best

HEADERS = {
    "x-nuclio-project-name": "cvat",
    "x-nuclio-function-namespace": "nuclio",
    "x-nuclio-invoke-via": "domain-name",
    "X-Nuclio-Invoke-Timeout": "120s",
    "x-nuclio-path": "/",
    "User-Agent": "CVAT/2.80.0 python-requests/2.34.2",
}


def invoke(tool, function, **body):
    headers = {**HEADERS, "x-nuclio-function-name": function}
    return tool.post("/api/function_invocations", json=body, headers=headers)


def interact(tool, photo, *, pos=(), neg=(), box=()):
    answer = invoke(
        tool, INTERACTOR, image=photo.base64, pos_points=pos, neg_points=neg, obj_bbox=box
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def from_rows(answer, photo):
    """The mask as CVAT made run lengths of `mask` and `bounds`."""
    left, top, right, bottom = answer["bounds"]
    mask = np.zeros((photo.height, photo.width), bool)
    mask[top : bottom + 1, left : right + 1] = answer["mask"]
    return mask


def from_shapes(answer, photo):
    """The mask as CVAT reads a mask shape: run lengths in the box, and the box."""
    (shape,) = answer["shapes"]
    assert shape["type"] == "mask"
    assert shape["attributes"] == []
    *runs, left, top, right, bottom = shape["points"]
    pixels = np.concatenate([np.full(length, i % 2 == 1) for i, length in enumerate(runs)])
    mask = np.zeros((photo.height, photo.width), bool)
    mask[top : bottom + 1, left : right + 1] = pixels.reshape(bottom - top + 1, right - left + 1)
    return mask


def test_functions_are_as_cvat_reads_them(tool):
    functions = tool.get("/api/functions", headers=HEADERS).json()
    assert functions.keys() == {INTERACTOR, DETECTOR}
    for name, function in functions.items():
        assert tool.get(f"/api/functions/{name}").json() == function
        assert function["metadata"]["name"] == name
        annotations = function["metadata"]["annotations"]
        assert annotations["type"] in ("interactor", "detector")
        labels = json.loads(annotations.get("spec") or "[]")
        assert len({label["name"] for label in labels}) == len(labels)
        for key in ("min_pos_points", "min_neg_points", "version"):
            int(annotations.get(key, 1))
        assert isinstance(function["spec"]["description"], str)
        assert function["status"]["state"] == "ready"
    interactor = functions[INTERACTOR]["metadata"]["annotations"]
    assert int(interactor["min_pos_points"]) == 1
    assert int(interactor["version"]) >= 2  # CVAT warns of interactors before
    assert bool(interactor["startswith_box_optional"])


@pytest.mark.parametrize("box", [[], None])
def test_one_click_gives_the_best_of_three_masks(tool, photo, predict, box):
    answer = interact(tool, photo, pos=[CLICK], box=box)
    expected = best(predict(multimask=True, points=[CLICK], labels=[1]))
    assert np.array_equal(from_rows(answer, photo), expected)
    assert np.array_equal(from_shapes(answer, photo), expected)


def test_more_clicks_give_the_single_mask(tool, photo, predict):
    points = [CLICK, (250.0, 300.0), (20.0, 20.0)]
    answer = interact(tool, photo, pos=points[:2], neg=points[2:])
    expected = best(predict(multimask=False, points=points, labels=[1, 1, 0]))
    assert np.array_equal(from_shapes(answer, photo), expected)


@pytest.mark.parametrize(
    "drawn", [[BOX[:2], BOX[2:]], [BOX[2:], BOX[:2]], [[BOX[0], BOX[3]], [BOX[2], BOX[1]]], BOX]
)
def test_a_box_in_any_direction(tool, photo, predict, drawn):
    answer = interact(tool, photo, box=drawn)
    assert np.array_equal(from_shapes(answer, photo), best(predict(multimask=False, box=BOX)))


def test_a_box_and_a_click(tool, photo, predict):
    answer = interact(tool, photo, pos=[CLICK], box=[BOX[:2], BOX[2:]])
    expected = best(predict(multimask=False, points=[CLICK], labels=[1], box=BOX))
    assert np.array_equal(from_rows(answer, photo), expected)


def test_the_detector_answers_what_the_service_finds(tool, photo, everything, monkeypatch):
    asked = []

    async def found(service, image_id, options, *, client):
        asked.append((image_id, options))
        yield {"done": 36, "total": 36}
        for record in everything:
            yield record

    monkeypatch.setattr(SegmentationService, "segment", found)
    answer = invoke(tool, DETECTOR, image=photo.base64)
    assert answer.status_code == 200, answer.text
    assert asked == [(hashlib.sha256(photo.data).hexdigest(), {})]
    items = answer.json()
    assert len(items) == len(everything) > 3
    for item, record in zip(items, everything, strict=True):
        assert (item["type"], item["label"]) == ("mask", "object")
        *pixels, left, top, right, bottom = item["mask"]
        mask = np.zeros((photo.height, photo.width), bool)
        shape = (bottom - top + 1, right - left + 1)
        mask[top : bottom + 1, left : right + 1] = np.reshape(pixels, shape)
        assert np.array_equal(mask, decode(record["segmentation"]))
        assert len(item["points"]) >= 6
        assert len(item["points"]) % 2 == 0
        assert float(item["confidence"]) == pytest.approx(record["predicted_iou"], abs=1e-4)
    median = float(np.median([record["predicted_iou"] for record in everything]))
    fewer = invoke(tool, DETECTOR, image=photo.base64, threshold=median).json()
    assert 0 < len(fewer) < len(items)
    assert len(fewer) == sum(record["predicted_iou"] >= median for record in everything)


@pytest.mark.parametrize(
    ("function", "body", "status", "said"),
    [
        ("pth-facebookresearch-sam-vit-h", {"image": ""}, 404, "no function"),
        (INTERACTOR, {"pos_points": [[1, 1]]}, 422, "image"),
        (INTERACTOR, {"image": "", "pos_points": []}, 422, "neither a point nor a box"),
        (INTERACTOR, {"image": "bm90IGFuIGltYWdl", "pos_points": [[1, 1]]}, 422, "image"),
        (INTERACTOR, {"image": "?", "pos_points": [[1, 1]]}, 422, "base64"),
        (INTERACTOR, {"image": "http://a/b.jpg", "pos_points": [[1, 1]]}, 422, "fetches none"),
        (INTERACTOR, {"image": "", "pos_points": [[1, 1, 1]]}, 422, "pos_points"),
        (INTERACTOR, {"image": "", "obj_bbox": [[1, 1]]}, 400, "box"),
    ],
)
def test_mistakes_are_said_in_nuclios_form(tool, function, body, status, said):
    answer = invoke(tool, function, **body)
    assert answer.status_code == status
    assert said in answer.json()["error"]


def test_a_call_without_a_function_is_refused(tool):
    answer = tool.post("/api/function_invocations", json={"image": ""})
    assert answer.status_code == 422
    assert "x-nuclio-function-name" in answer.json()["error"]


def test_rows_of_digits():
    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    assert json.loads(f"[{rows_of_digits(mask)}]") == mask.astype(int).tolist()
