"""Requests that no tool sends: none of them fails the server."""

from __future__ import annotations

import base64
import io
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

from samfast.serve.wires import WIRES
from tests.serve.running import picture, serving, tiny_engine


@pytest.fixture(scope="module")
def server():
    with serving(tiny_engine(), wires=WIRES, max_image_pixels=100_000) as (address, _):
        yield address


@pytest.mark.timeout(280)
def test_schemathesis_finds_no_failure_of_the_server(server, tmp_path):
    pytest.importorskip("schemathesis")
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("run", f"{server}/openapi.json", "--exclude-path-regex", "^/v1/(images|prewarm)"),
            *("--phases", "examples,coverage,fuzzing", "--checks", "not_a_server_error"),
            *("--max-examples", "20", "--seed", "1", "--request-timeout", "60", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def calls(image):
    """A request of each wire with that image."""
    box = [5, 5, 60, 40]
    click = {"type": "keypointlabels", "value": {"x": 50, "y": 50}}
    config = '<a><Image name="i" value="$p"/><BrushLabels name="b" toName="i"/></a>'
    return {
        "/api/function_invocations": {"image": image, "obj_bbox": [box[:2], box[2:]]},
        "/v1/predict": {
            "model": "tiny",
            "image": image,
            "params": {"marks": [{"type": "rectangle", "data": box}]},
        },
        "/sam/": {"b64img": image, "bbox": box},
        "/sam/segment_image": {
            "image": {"type": "base64", "value": image},
            "point_coords": [[30, 30]],
            "point_labels": [1],
        },
        "/sam2/segment_image": {
            "image": {"type": "base64", "value": image},
            "prompts": [{"points": [{"x": 30, "y": 30, "positive": True}]}],
        },
        "/predict": {
            "tasks": [{"data": {"p": f"data:image/png;base64,{image}"}}],
            "label_config": config,
            "params": {"context": {"result": [click]}},
        },
    }


HEADERS = {"x-nuclio-function-name": "samfast-interactor", "Token": ""}


def png(width, height):
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("path", calls(""))
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 422),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), 422),
        (picture(0)[:-300], 422),
        (png(400, 300), 413),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422),
    ],
    ids=["empty", "no-png", "cut-off", "too-many-pixels", "svg"],
)
def test_bad_images_fail_alone(server, path, data, status):
    model = "tiny" if path != "/v1/predict" else served_model(server)
    body = calls(base64.b64encode(data).decode())[path]
    if path == "/v1/predict":
        body["model"] = model
    answer = httpx.post(f"{server}{path}", json=body, headers=HEADERS, timeout=60)
    assert answer.status_code == status, answer.text
    good = calls(base64.b64encode(picture(1)).decode())[path]
    if path == "/v1/predict":
        good["model"] = model
    answer = httpx.post(f"{server}{path}", json=good, headers=HEADERS, timeout=60)
    assert answer.status_code == 200, answer.text


def served_model(server):
    (model,) = httpx.get(f"{server}/v1/models").json()["data"]
    return model


@pytest.mark.parametrize("path", calls(""))
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"a"', b"[" * 50_000, b'{"model": NaN}', b"\xff", b"1" * 5000],
    ids=["empty", "open", "list", "null", "text", "deep", "nan", "not-utf8", "digits"],
)
def test_bodies_that_are_no_request(server, path, body):
    headers = {**HEADERS, "Content-Type": "application/json"}
    answer = httpx.post(f"{server}{path}", content=body, headers=headers, timeout=60)
    assert answer.status_code in (400, 422), answer.text


def test_numbers_beyond_all_images(server):
    image = base64.b64encode(picture(1)).decode()
    for point in ([1e300, 1], [-1e300, 1], [10**400, 1], [1e9, 1e9]):
        body = {"image": image, "pos_points": [point]}
        answer = httpx.post(
            f"{server}/api/function_invocations", json=body, headers=HEADERS, timeout=60
        )
        assert answer.status_code in (200, 422), answer.text
