"""X-AnyLabeling: what its remote server's client sends, and how it reads the answers."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from tests.outputs.test_contours import drawn
from tests.serve.wires.conftest import BOX, CLICK, best, large_pieces

HEADERS = {"Content-Type": "application/json", "Token": ""}


def ask(tool, photo, marks, *, model="vit_xs", headers=HEADERS, image=None, **params):
    """`RemoteServer.predict_shapes` of the client."""
    sent = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.0, **params}
    if marks:
        sent["marks"] = marks
    image = image or f"data:image/png;base64,{photo.base64}"
    body = {"model": model, "image": image, "params": sent}
    return tool.post("/v1/predict", json=body, headers=headers)


def shapes(answer):
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["success"] is True
    assert body["data"]["replace"] is False
    for shape in body["data"]["shapes"]:
        assert shape["label"] == "AUTOLABEL_OBJECT"
        assert 0 <= shape["score"] <= 1
    return body["data"]["shapes"]


def click(x, y, label=1):
    return {"type": "point", "data": [x, y], "label": label}


def filled(polygons, photo):
    mask = np.zeros((photo.height, photo.width), bool)
    for shape in polygons:
        assert shape["shape_type"] == "polygon"
        points = np.array(shape["points"])
        assert np.array_equal(points[0], points[-1])  # closed
        mask |= drawn(points[:-1].astype(int), mask.shape)
    return mask


def test_the_model_is_listed_with_the_tools_that_it_needs(tool):
    body = tool.get("/v1/models", headers=HEADERS).json()
    assert body["success"] is True
    assert body["data"].keys() == {"vit_xs"}
    info = body["data"]["vit_xs"]
    assert {"button_add_point", "button_add_rect"} <= {each["name"] for each in info["widgets"]}
    assert info["batch_processing_mode"] is None
    of_model = tool.get("/v1/models/vit_xs/info").json()
    assert of_model["data"] == {"model_id": "vit_xs", **info}
    health = tool.get("/health").json()
    assert health["status"] in ("healthy", "UP")


def test_one_click_gives_the_best_of_three_masks(tool, photo, predict):
    polygons = shapes(ask(tool, photo, [click(*CLICK)]))
    expected = best(predict(multimask=True, points=[CLICK], labels=[1]))
    assert np.array_equal(filled(polygons, photo), large_pieces(expected))


def test_clicks_on_both_sides(tool, photo, predict):
    points = [CLICK, (20.0, 20.0)]
    polygons = shapes(ask(tool, photo, [click(*points[0]), click(*points[1], 0)]))
    expected = best(predict(multimask=False, points=points, labels=[1, 0]))
    assert np.array_equal(filled(polygons, photo), large_pieces(expected))


@pytest.mark.parametrize("corners", [BOX, (BOX[2], BOX[3], BOX[0], BOX[1])])
def test_a_rectangle(tool, photo, predict, corners):
    polygons = shapes(ask(tool, photo, [{"type": "rectangle", "data": corners, "label": 1}]))
    assert np.array_equal(
        filled(polygons, photo), large_pieces(best(predict(multimask=False, box=BOX)))
    )


def test_two_rectangles_are_two_objects(tool, photo, predict):
    small = (320.0, 230.0, 420.0, 330.0)
    marks = [{"type": "rectangle", "data": box} for box in (BOX, small)]
    found = shapes(ask(tool, photo, marks))
    expected = [large_pieces(best(predict(multimask=False, box=box))) for box in (BOX, small)]
    assert np.array_equal(filled(found, photo), expected[0] | expected[1])
    assert len({shape["score"] for shape in found}) == 2


def test_multimask_is_the_callers_choice(tool, photo, predict):
    polygons = shapes(ask(tool, photo, [click(*CLICK)], multimask_output=False))
    expected = best(predict(multimask=False, points=[CLICK], labels=[1]))
    assert np.array_equal(filled(polygons, photo), large_pieces(expected))


def test_fineness_leaves_out_corners_not_the_shape(tool, photo):
    exact = shapes(ask(tool, photo, [click(*CLICK)]))
    coarse = shapes(ask(tool, photo, [click(*CLICK)], epsilon_factor=0.002))
    assert len(coarse) == len(exact)
    fewer, all_corners = (sum(len(each["points"]) for each in some) for some in (coarse, exact))
    assert fewer < all_corners / 2
    from matplotlib.path import Path

    for shape, other in zip(coarse, exact, strict=True):
        assert {tuple(point) for point in shape["points"]} <= {tuple(p) for p in other["points"]}
        rows, columns = np.mgrid[: photo.height, : photo.width]
        pixels = np.stack([columns.ravel(), rows.ravel()], 1)
        ours, theirs = (Path(each["points"]).contains_points(pixels) for each in (shape, other))
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97


def test_boxes_instead_of_masks(tool, photo, predict):
    (rectangle,) = shapes(ask(tool, photo, [click(*CLICK)], show_boxes=True, show_masks=False))
    rows, columns = np.nonzero(
        large_pieces(best(predict(multimask=True, points=[CLICK], labels=[1])))
    )
    x0, y0, x1, y1 = columns.min(), rows.min(), columns.max(), rows.max()
    assert rectangle["shape_type"] == "rectangle"
    assert rectangle["points"] == [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def test_no_marks_no_shapes(tool, photo):
    assert shapes(ask(tool, photo, [])) == []


def test_samfasts_own_call_is_told_apart(tool, photo):
    own = {
        "image": {"data": photo.base64},
        "objects": [{"points": [CLICK], "labels": [1]}],
        "multimask": True,
    }
    answer = tool.post("/v1/predict", json=own)
    assert answer.status_code == 200, answer.text
    assert answer.json()["image"]["width"] == photo.width
    assert len(answer.json()["objects"][0]["masks"]) == 3
    # With neither key, mistakes are said in samfast's form; with `model` or `Token`, in theirs.
    assert tool.post("/v1/predict", json={"objects": 1}).json()["error"]["code"] == "bad_request"
    assert tool.post("/v1/predict", content=b"[").json()["error"]["code"] == "bad_request"
    assert tool.post("/v1/predict", json={"model": 1}).json()["error"]["code"] == "BAD_REQUEST"
    assert tool.post("/v1/predict", json={}, headers=HEADERS).json()["success"] is False
    # X-AnyLabeling's request without its header is known by the key `model`.
    assert shapes(ask(tool, photo, [click(*CLICK)], headers={}))


def test_the_description_of_samfasts_own_call_stays(tool):
    paths = tool.get("/openapi.json").json()["paths"]
    body = paths["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("/OneCallModel")
    assert {"/v1/models", "/api/functions", "/predict", "/sam/"} <= paths.keys()


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "sam9"}, 404, "MODEL_NOT_FOUND"),
        ({"image": "data:image/png;base64,bm90IGFuIGltYWdl"}, 422, "BAD_IMAGE"),
        ({"image": "https://a/b.jpg"}, 422, "URL_NOT_FETCHED"),
        ({"epsilon_factor": -1}, 422, "BAD_REQUEST"),
    ],
)
def test_mistakes_have_a_status_that_the_client_shows(tool, photo, change, status, code):
    answer = ask(tool, photo, [click(*CLICK)], **change)
    assert answer.status_code == status
    body = answer.json()
    assert body["success"] is False
    assert body["error"]["code"] == code
    assert body["error"]["message"]


def test_an_unknown_mark_is_said(tool, photo):
    answer = ask(tool, photo, [{"type": "auto_grid"}])
    assert answer.status_code == 422
    assert "marks" in answer.json()["error"]["message"]


def test_bare_base64_is_an_image_too(tool, photo):
    bare = base64.b64encode(photo.data).decode()
    assert shapes(ask(tool, photo, [click(*CLICK)], image=bare))
