"""Labelling tools' own code on a server with their wires, masks compared pixel for pixel."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

import samfast
from samfast.coco_rle import decode
from samfast.outputs import mask_to_contours
from tests.clients.checkouts import checkout
from tests.clients.conftest import needs

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

X_ANYLABELING = "https://github.com/CVHub520/X-AnyLabeling"
X_ANYLABELING_COMMIT = "87da33999c3d146ae38d1cd0a4f6c328f3908406"
REMOTE_SERVER = "anylabeling/services/auto_labeling/remote_server.py"

TOKEN = "a-token-of-the-tests"

CLICK = (300.0, 150.0)
BOX = (160.0, 60.0, 470.0, 330.0)


@pytest.fixture(scope="module")
def engine():
    return samfast.load("vit_xs", device="cpu", recipe="fp32")


@pytest.fixture(scope="module")
def address(engine, photo) -> Iterator[str]:
    """A server with all wires, which needs a token and takes the photo by its path."""
    pytest.importorskip("fastapi")
    from samfast.serve.wires import WIRES
    from tests.serve.running import serving

    other = samfast.load("vit_xs", device="cpu", recipe="fp32")
    with serving(other, wires=WIRES, token=TOKEN, root=photo.parent) as (url, _):
        yield url


@pytest.fixture(scope="module")
def expected(engine, photo):
    """The engine's own masks: the best of three for a click, the best and the single for a box."""
    embeddings = engine.embed([np.asarray(Image.open(photo))])

    def best(prompts, multimask):
        (masks,) = engine.predict(embeddings, [prompts], multimask=multimask)
        return masks.masks[0, int(masks.iou[0].argmax())].numpy()

    click = samfast.Prompts(points=[[CLICK]], labels=[[1]])
    box = samfast.Prompts(boxes=[BOX])
    return {"click": best(click, True), "box": best(box, False), "box of three": best(box, True)}


@needs("inference_sdk")
def test_roboflows_client(address, photo, expected):
    from inference_sdk import InferenceConfiguration, InferenceHTTPClient
    from inference_sdk.http.errors import HTTPCallErrorError

    def client_with(key, transport="header"):
        client = InferenceHTTPClient(api_url=address, api_key=key)
        return client.configure(InferenceConfiguration(api_key_transport=transport))

    client = client_with(TOKEN)
    (x0, y0, x1, y1), (x, y) = BOX, CLICK
    box = {"x": (x0 + x1) / 2, "y": (y0 + y1) / 2, "width": x1 - x0, "height": y1 - y0}
    answer = client.sam2_segment_image(
        str(photo),
        prompts=[{"points": [{"x": x, "y": y, "positive": True}]}, {"box": box}],
        mask_input_format="rle",
    )
    masks = [decode(each["masks"]) for each in answer["predictions"]]
    assert np.array_equal(masks[0], expected["click"])
    assert np.array_equal(masks[1], expected["box of three"])
    with pytest.raises(HTTPCallErrorError, match="no prompts") as error:
        client.sam2_segment_image(str(photo), prompts=[])
    assert error.value.status_code == 422
    # Its older way puts the key into the body, which is not read before the token is checked.
    for refused in (client_with("wrong"), client_with(TOKEN, "legacy")):
        with pytest.raises(HTTPCallErrorError) as error:
            refused.sam2_segment_image(str(photo))
        assert error.value.status_code == 401


@needs("label_studio_sdk")
def test_label_studios_converter_reads_the_brush(address, photo, expected):
    from label_studio_sdk.converter import brush

    config = (
        '<View><Image name="image" value="$photo"/><BrushLabels name="tag" toName="image">'
        '<Label value="Cup"/></BrushLabels></View>'
    )
    click = {
        "type": "keypointlabels",
        "value": {"x": CLICK[0] / 6, "y": CLICK[1] / 4, "keypointlabels": ["Cup"]},
        "is_positive": True,
    }
    body = {
        "tasks": [{"id": 1, "data": {"photo": f"/data/local-files/?d={photo.name}"}}],
        "label_config": config,
        "params": {"context": {"result": [click]}},
    }
    answer = requests.post(f"{address}/predict", json=body, auth=("any", TOKEN), timeout=60)
    (prediction,) = answer.json()["results"]
    exported = [
        {**region["value"], "type": region["type"]}
        | {key: region[key] for key in ("original_width", "original_height")}
        for region in prediction["result"]
    ]
    (layer,) = brush.decode_from_annotation("tag", exported).values()
    assert np.array_equal(layer > 0, expected["click"])


@needs("cvat_sdk")
def test_cvats_sdk_encodes_the_same_mask(address, photo, expected):
    import base64

    from cvat_sdk.masks import encode_mask

    body = {
        "image": base64.b64encode(photo.read_bytes()).decode(),
        "pos_points": [],
        "neg_points": [],
        "obj_bbox": [BOX[:2], BOX[2:]],
    }
    answer = requests.post(
        f"{address}/api/function_invocations",
        json=body,
        headers={"x-nuclio-function-name": "samfast-interactor"},
        auth=("cvat", TOKEN),
        timeout=60,
    )
    (shape,) = answer.json()["shapes"]
    assert shape["points"] == encode_mask(expected["box"])


@pytest.fixture
def remote_server(pytestconfig, monkeypatch):
    """X-AnyLabeling's client of remote servers, on stand-ins for Qt and for its other modules."""
    folder = checkout(
        X_ANYLABELING,
        X_ANYLABELING_COMMIT,
        [REMOTE_SERVER],
        Path(pytestconfig.cache.mkdir("clients")),
    )

    class Model:
        def __init__(self, config, on_message):
            self._config = self.config = config
            self.on_message = on_message

    class Shape:
        def __init__(self, **fields):
            self.fields, self.points = fields, []

        def add_point(self, point):
            self.points.append(point)

    @dataclasses.dataclass
    class AutoLabelingResult:
        shapes: list
        replace: bool
        description: str = ""

    class Application:
        @staticmethod
        def translate(context, text):
            return text

    core = types.SimpleNamespace(QPointF=lambda x, y: (x, y), QCoreApplication=Application)
    modules: dict[str, dict[str, Any]] = {
        "PyQt6": {"QtCore": core},
        "PyQt6.QtCore": {"QCoreApplication": Application},
        "PyQt6.QtWidgets": {"QApplication": None},
        "anylabeling": {},
        "anylabeling.views": {},
        "anylabeling.views.labeling": {},
        "anylabeling.views.labeling.shape": {"Shape": Shape},
        "anylabeling.views.labeling.logger": {"logger": __import__("logging").getLogger("x")},
        "anylabeling.views.labeling.utils": {},
        "anylabeling.views.labeling.utils.opencv": {"qt_img_to_rgb_cv_img": None},
        "anylabeling.services": {},
        "anylabeling.services.auto_labeling": {"__path__": []},
        "anylabeling.services.auto_labeling.model": {"Model": Model},
        "anylabeling.services.auto_labeling.types": {"AutoLabelingResult": AutoLabelingResult},
    }
    for name, attributes in modules.items():
        module = types.ModuleType(name)
        for attribute, value in attributes.items():
            setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, name, module)
    name = "anylabeling.services.auto_labeling.remote_server"
    spec = importlib.util.spec_from_file_location(name, folder / REMOTE_SERVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RemoteServer


@needs("cv2")
def test_x_anylabelings_client(remote_server, address, photo, expected):
    import cv2

    def filled(rings):
        masks = [np.zeros(expected["click"].shape, np.uint8) for _ in rings]
        for mask, ring in zip(masks, rings, strict=True):
            cv2.fillPoly(mask, [ring.astype(np.int32)], 1)
        return np.any(masks, axis=0)

    said: list[str] = []
    settings = {"server_url": address, "api_key": TOKEN}
    client = remote_server({"remote_server_settings": settings, "timeout": 60}, said.append)
    (model,) = client.get_available_models()
    client.set_model_id(model)
    assert client.get_batch_processing_mode() is None
    client.set_mask_fineness(0.0)
    prompts = {
        "click": [{"type": "point", "data": list(CLICK), "label": 1}],
        "box": [{"type": "rectangle", "data": list(BOX), "label": 1}],
    }
    for name, marks in prompts.items():
        client.set_auto_labeling_marks(marks)
        result = client.predict_shapes(object(), str(photo))
        assert result.shapes, said
        assert result.replace is False
        assert {shape.fields["label"] for shape in result.shapes} == {"AUTOLABEL_OBJECT"}
        drawn = filled([np.array(shape.points) for shape in result.shapes])
        contours = mask_to_contours(expected[name])
        largest = max(contours, key=lambda each: cv2.contourArea(each.astype(np.int32)))
        assert not (drawn & ~filled(contours)).any()
        assert not (filled([largest]) & ~drawn).any()
    assert not said
    client.set_model_id("another")
    assert not client.predict_shapes(object(), str(photo)).shapes
    assert "404" in said[-1]
