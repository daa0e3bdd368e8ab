"""Label Studio: what its `MLApi` sends, and how its annotations are read."""

from __future__ import annotations

import base64
import hashlib
import time

import numpy as np
import pytest

from samfast.serve.problems import ProblemError
from samfast.serve.wires.label_studio import Control, control_of, path_of
from tests.outputs.test_label_studio_masks import decoded
from tests.outputs.test_polygons import filled
from tests.serve.wires.conftest import BOX, CLICK, TOKEN, best, large_pieces

BRUSH = """
<View>
  <!-- the configuration of Label Studio's own example for SAM -->
  <Image name="image" value="$photo" zoom="true"/>
  <BrushLabels name="tag" toName="image"><Label value="Cup"/><Label value="Plate"/></BrushLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true"><Label value="Cup"/></KeyPointLabels>
  <RectangleLabels name="tag3" toName="image" smart="true"><Label value="Cup"/></RectangleLabels>
</View>
"""
POLYGON = BRUSH.replace("BrushLabels", "PolygonLabels")
LOCAL = "/data/local-files/?d=trip/a%20cup.png"


def click(photo, x, y, *, positive=True, label="Cup"):
    return {
        "original_width": photo.width,
        "original_height": photo.height,
        "image_rotation": 0,
        "value": {
            "x": 100 * x / photo.width,
            "y": 100 * y / photo.height,
            "width": 0.3,
            "labels": [label],
            "keypointlabels": [label],
        },
        "is_positive": positive,
        "id": "fBWv1t0S2L",
        "from_name": "tag2",
        "to_name": "image",
        "type": "keypointlabels",
        "origin": "manual",
    }


def rectangle(photo, x0, y0, x1, y1):
    region = click(photo, x0, y0, label="Plate")
    region["type"] = "rectanglelabels"
    region["value"] = {
        "x": 100 * x0 / photo.width,
        "y": 100 * y0 / photo.height,
        "width": 100 * (x1 - x0) / photo.width,
        "height": 100 * (y1 - y0) / photo.height,
        "rotation": 0,
        "rectanglelabels": ["Plate"],
    }
    return region


def ask(tool, interactions, *, config=BRUSH, image=LOCAL, tasks=None):
    """`MLApi.make_predictions` of Label Studio."""
    context = {"result": interactions} if interactions is not None else None
    body = {
        "tasks": tasks or [{"id": 5, "data": {"photo": image}, "is_labeled": False}],
        "model_version": "samfast",
        "project": "3.1700000000",
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }
    return tool.post("/predict", json=body)


def regions(answer):
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["results"]
    assert prediction["model_version"].startswith("samfast-vit_xs-")
    return prediction["result"]


def brushed(answer, photo):
    (region,) = regions(answer)
    assert (region["from_name"], region["to_name"]) == ("tag", "image")
    assert region["type"] == "brushlabels"
    assert region["value"]["format"] == "rle"
    assert (region["original_width"], region["original_height"]) == (photo.width, photo.height)
    alpha = decoded(region["value"]["rle"]).reshape(photo.height, photo.width, 4)[..., 3]
    return alpha > 0, region["value"]["brushlabels"]


def test_a_model_is_connected(tool):
    assert tool.get("/health").json()["status"] in ("UP", "healthy")
    setup = tool.post(
        "/setup",
        json={"project": "3.17", "schema": BRUSH, "hostname": "http://ls", "access_token": "t"},
    ).json()
    assert tool.get("/versions").json() == {"versions": [setup["model_version"]]}
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 3}}
    assert tool.post("/webhook", json=event).status_code == 200


def test_one_click_gives_the_best_of_three_masks(tool, photo, predict):
    mask, labels = brushed(ask(tool, [click(photo, *CLICK)]), photo)
    assert np.array_equal(mask, best(predict(multimask=True, points=[CLICK], labels=[1])))
    assert labels == ["Cup"]


def test_clicks_on_both_sides(tool, photo, predict):
    points = [CLICK, (20.0, 20.0)]
    interactions = [click(photo, *points[0]), click(photo, *points[1], positive=False)]
    mask, _ = brushed(ask(tool, interactions), photo)
    expected = best(predict(multimask=False, points=points, labels=[1, 0]))
    assert np.array_equal(mask, expected)


def test_a_rectangle_and_its_label(tool, photo, predict):
    mask, labels = brushed(ask(tool, [rectangle(photo, *BOX)]), photo)
    assert np.array_equal(mask, best(predict(multimask=False, box=BOX)))
    assert labels == ["Plate"]


@pytest.mark.parametrize(
    "image",
    ["/data/upload/7/cup.png", "http://localhost:8080" + LOCAL, "data:image/png;base64,"],
)
def test_images_below_the_root_and_in_the_request(tool, photo, predict, image):
    if image.startswith("data:"):
        image += base64.b64encode(photo.data).decode()
    mask, _ = brushed(ask(tool, [click(photo, *CLICK)], image=image), photo)
    assert np.array_equal(mask, best(predict(multimask=True, points=[CLICK], labels=[1])))


def test_polygons_for_a_project_that_has_no_brush(tool, photo, predict):
    found = regions(ask(tool, [rectangle(photo, *BOX)], config=POLYGON))
    union = np.zeros((photo.height, photo.width), bool)
    for region in found:
        assert region["type"] == "polygonlabels"
        assert region["value"]["closed"] is True
        assert region["value"]["polygonlabels"] == ["Plate"]
        points = np.array(region["value"]["points"])
        assert points.min() >= 0
        assert points.max() <= 100
        union |= filled(points * [photo.width, photo.height] / 100, union.shape) > 0
    expected = large_pieces(best(predict(multimask=False, box=BOX)))
    assert (union & expected).sum() / (union | expected).sum() > 0.97


def test_a_task_that_is_opened_is_embedded_ahead(tool, photo, root):
    other = root / "ahead.png"
    other.write_bytes(photo.data + b"\0")  # other bytes, the same picture
    assert ask(tool, None, image="/data/local-files/?d=ahead.png").json() == {"results": []}
    path = f"/v1/images/{hashlib.sha256(other.read_bytes()).hexdigest()}"
    deadline = time.monotonic() + 20
    while tool.get(path).status_code != 200:
        assert time.monotonic() < deadline, "the image was not taken"
        time.sleep(0.05)


def test_images_that_cannot_be_embedded_ahead_are_no_error(tool):
    tasks = [{"id": i, "data": {"photo": url}} for i, url in enumerate(["s3://a/b", "", LOCAL])]
    assert ask(tool, [], tasks=tasks).json() == {"results": []}


@pytest.mark.parametrize(
    ("image", "status", "said"),
    [
        ("https://example.org/photo.jpg", 422, "fetches none"),
        ("s3://bucket/photo.jpg", 422, "fetches none"),
        ("/tasks/5/resolve/?fileuri=czM6Ly9h", 422, "fetches none"),
        ("/data/local-files/?d=trip/none.png", 404, "no file"),
        ("/data/local-files/?d=../../etc/passwd", 404, "no file"),
        ("/data/local-files/?d=%2e%2e%2fsecret", 404, "no file"),
        ("/data/upload/../../secret", 404, "no file"),
        ("http://[", 422, "fetches none"),
    ],
)
def test_images_elsewhere_are_refused(tool, photo, image, status, said):
    answer = ask(tool, [click(photo, *CLICK)], image=image)
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert answer.json()["status"] == status


def test_without_a_root_no_path_is_taken(guarded, photo):
    answer = guarded.post(
        "/predict",
        json={
            "tasks": [{"data": {"photo": LOCAL}}],
            "label_config": BRUSH,
            "params": {"context": {"result": [click(photo, *CLICK)]}},
        },
        auth=("any", TOKEN),
    )
    assert answer.status_code == 403
    assert "--root" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "not XML"),
        ("<View><Image name='i' value='$i'/></View>", "BrushLabels"),
        ("<View><BrushLabels name='b' toName='i'/></View>", "BrushLabels"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><View/>", "declarations"),
    ],
)
def test_projects_without_a_brush_are_refused(tool, photo, config, said):
    answer = ask(tool, [click(photo, *CLICK)], config=config)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_two_tasks_cannot_share_clicks(tool, photo):
    tasks = [{"data": {"photo": LOCAL}}] * 2
    assert ask(tool, [click(photo, *CLICK)], tasks=tasks).status_code == 422


def test_the_tag_that_masks_answer():
    assert control_of(BRUSH) == Control("tag", "image", "brushlabels", "photo")
    both = POLYGON.replace("</View>", '<BrushLabels name="b" toName="image"/></View>')
    assert control_of(both).kind == "brushlabels"


def test_paths_of_local_files():
    assert path_of(LOCAL) == "trip/a cup.png"
    assert path_of("/label-studio/data/local-files/?d=/x.jpg") == "x.jpg"
    assert path_of("/data/upload/7/a%20b.png") == "upload/7/a b.png"
    with pytest.raises(ProblemError, match="fetches none"):
        path_of("/data/local-files/?d=a&d=b")
