"""Labelling tools' own code on a server with their wires, masks compared pixel for pixel."""

from __future__ import annotations

import ast
import base64
import copy
import dataclasses
import datetime
import enum
import importlib.util
import json
import logging
import os
import sys
import types
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth

import samfast
from samfast.coco_rle import decode
from samfast.outputs import mask_to_contours
from tests.clients.checkouts import checkout
from tests.clients.conftest import needs

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

X_ANYLABELING = "https://github.com/CVHub520/X-AnyLabeling"
X_ANYLABELING_COMMIT = "87da33999c3d146ae38d1cd0a4f6c328f3908406"
REMOTE_SERVER = "anylabeling/services/auto_labeling/remote_server.py"

# Forks, in which the file is the copy of the tool's own.
CVAT = "https://github.com/chawanghyeon/cvat"
CVAT_COMMIT = "f3dcc3e8352f6d495f22398811f24d2944b6f7cb"
LABEL_STUDIO = "https://github.com/OpenCSGs/label-studio"
LABEL_STUDIO_COMMIT = "32b43996a29646046629d91e979dd76faf3565d8"

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
    limits = {"request_seconds": 480.0}  # of everything in a photo, on a busy machine
    with serving(other, wires=WIRES, token=TOKEN, root=photo.parent, **limits) as (url, _):
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


def definitions(path: Path, names: dict[str, Any], wanted: str = "") -> dict[str, Any]:
    """The classes and constants of a module whose imports are replaced by `names`.

    wanted  classes to take, where the others need what is replaced; "": all
    """
    future = ast.parse("from __future__ import annotations").body
    kept = [
        node
        for node in ast.parse(path.read_text()).body
        if (isinstance(node, ast.ClassDef) and (not wanted or node.name in wanted.split()))
        or (isinstance(node, ast.Assign) and not wanted)
    ]
    namespace = dict(names, __name__=path.stem)
    exec(compile(ast.Module([*future, *kept], []), str(path), "exec"), namespace)
    return namespace


def test_cvats_server_calls_both_functions(pytestconfig, address, photo, expected):
    """Its gateway and functions as they are; only the image does not come from its database."""
    name = "cvat/apps/lambda_manager/views.py"
    folder = checkout(CVAT, CVAT_COMMIT, [name], Path(pytestconfig.cache.mkdir("clients")))
    host, _, port = address.removeprefix("http://").partition(":")
    nuclio = {
        "SCHEME": "http",
        "HOST": f"cvat:{TOKEN}@{host}",
        "PORT": port,
        "INVOKE_METHOD": "dashboard",
        "FUNCTION_NAMESPACE": "nuclio",
        "DEFAULT_TIMEOUT": 480,
    }
    cvat = definitions(
        folder / name,
        {
            "Enum": enum.Enum,
            "json": json,
            "os": os,
            "deepcopy": copy.deepcopy,
            "settings": types.SimpleNamespace(NUCLIO=nuclio),
            "ValidationError": ValueError,
            "make_requests_session": requests.Session,
            "ShapeType": types.SimpleNamespace(MASK="mask", POLYGON="polygon"),
            "status": None,
        },
        "LambdaType LambdaGateway LambdaFunction",
    )
    encoded = base64.b64encode(photo.read_bytes()).decode()
    cvat["LambdaFunction"]._get_image = lambda self, db_task, frame, quality: encoded

    none = types.SimpleNamespace(all=list, values=list)
    label = types.SimpleNamespace(name="cup", type="mask", attributespec_set=none)
    task = types.SimpleNamespace(id=1, get_labels=lambda prefetch: [label])
    gateway = cvat["LambdaGateway"]()
    functions = {each.kind.value: each for each in gateway.list()}
    assert set(functions) == {"interactor", "detector"}
    interactor = gateway.get(functions["interactor"].id)
    shown = interactor.to_dict()
    assert shown["min_pos_points"] >= 0 and "Segment Anything" in shown["name"]
    # CVAT gives the box as the first two points of an interactor that begins with a box.
    points = [*([BOX[:2], BOX[2:]] if interactor.startswith_box else []), CLICK]
    answer = interactor.invoke(task, {"frame": 0, "pos_points": points, "neg_points": []})
    assert np.array(answer["mask"]).any()
    if not interactor.startswith_box:
        left, top, right, bottom = answer["bounds"]
        drawn = np.zeros_like(expected["click"])
        drawn[top : bottom + 1, left : right + 1] = answer["mask"]
        assert np.array_equal(drawn, expected["click"])
    mapping = {"object": {"name": "cup", "attributes": {}}}
    shapes = functions["detector"].invoke(task, {"frame": 0, "mapping": mapping})
    assert shapes and {each["label"] for each in shapes} == {"cup"}
    nuclio["HOST"] = f"cvat:wrong@{host}"
    with pytest.raises(requests.HTTPError, match="401"):
        gateway.list()


def test_label_studios_server_calls_its_backend(pytestconfig, address, photo, expected):
    name = "label_studio/ml/api_connector.py"
    cache = Path(pytestconfig.cache.mkdir("clients"))
    folder = checkout(LABEL_STUDIO, LABEL_STUDIO_COMMIT, [name], cache)
    studio = definitions(
        folder / name,
        {
            "logging": logging,
            "os": os,
            "urllib": urllib,
            "requests": requests,
            "get_git_version": lambda: "1",
            "get_env": lambda key, otherwise: otherwise,
            "HTTPAdapter": HTTPAdapter,
            "HTTPBasicAuth": HTTPBasicAuth,
            "settings": types.SimpleNamespace(HOSTNAME="http://localhost:8080"),
        },
    )
    config = (
        '<View><Image name="image" value="$photo"/><BrushLabels name="tag" toName="image">'
        '<Label value="Cup"/></BrushLabels></View>'
    )
    token = types.SimpleNamespace(key="of-label-studio")
    project = types.SimpleNamespace(
        id=1,
        created_at=datetime.datetime(2026, 1, 1),
        label_config=config,
        task_data_login=None,
        task_data_password=None,
        created_by=types.SimpleNamespace(auth_token=token),
    )
    api = studio["MLApi"](url=address, basic_auth_user="any", basic_auth_pass=TOKEN)
    assert not api.health().is_error
    set_up = api.setup(project)
    assert not set_up.is_error and set_up.response["model_version"]
    assert set_up.response["model_version"] in api.get_versions(project).response["versions"]
    click = {
        "type": "keypointlabels",
        "value": {"x": CLICK[0] / 6, "y": CLICK[1] / 4, "keypointlabels": ["Cup"]},
        "is_positive": True,
        "from_name": "tag",
        "to_name": "image",
    }
    tasks = [{"id": 1, "data": {"photo": f"/data/local-files/?d={photo.name}"}}]
    answer = api.make_predictions(tasks, project, context={"result": [click]})
    assert not answer.is_error, answer.error_message
    ((region,),) = [each["result"] for each in answer.response["results"]]
    assert region["value"]["format"] == "rle"
    assert (region["original_width"], region["original_height"]) == (600, 400)
    wrong = studio["MLApi"](url=address, basic_auth_user="any", basic_auth_pass="wrong")
    assert wrong.health().status_code == 401
    assert wrong.make_predictions(tasks, project).is_error
