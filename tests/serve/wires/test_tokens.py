"""The token of a server, as each tool can send it; and that no wire goes without."""

from __future__ import annotations

import base64
from importlib import import_module

import pytest

from samfast.serve.wires import WIRES, token_of
from tests.serve.wires.conftest import TOKEN, serving

PATHS = ["/api/functions", "/health", "/versions", "/v1/models", "/sam/weights/"]


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_answered(guarded, path):
    assert guarded.get(path).status_code == 401
    assert guarded.get(path, headers={"Token": "another"}).status_code == 401
    assert guarded.get(path, auth=("cvat", "another")).status_code == 401
    assert guarded.get(path, params={"api_key": "another"}).status_code == 401


@pytest.mark.parametrize("path", PATHS)
def test_the_bearer_token_opens_every_wire(guarded, path):
    answer = guarded.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200


def test_cvat_has_it_in_the_address_of_nuclio(guarded):
    # http://cvat:TOKEN@host:port, of which the HTTP library makes this header.
    assert guarded.get("/api/functions", auth=("cvat", TOKEN)).status_code == 200


def test_label_studio_has_it_as_a_password(guarded):
    assert guarded.post("/setup", json={"project": "1.2"}, auth=("any", TOKEN)).status_code == 200


def test_x_anylabeling_has_a_header_of_its_own(guarded):
    assert guarded.get("/v1/models", headers={"Token": TOKEN}).status_code == 200


def test_roboflow_has_it_in_the_url(guarded):
    # The token is right and the body is not.
    answer = guarded.post("/sam2/segment_image", params={"api_key": TOKEN}, json={})
    assert answer.status_code == 422


def basic(text):
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def test_a_tools_way_counts_only_where_the_tool_is_named():
    assert token_of(["cvat"], basic("user:se:cret"), {}) == "se:cret"
    assert token_of(["label-studio"], basic("user:secret"), {}) == "secret"
    assert token_of(["samapi"], basic("user:secret"), {}) is None
    assert token_of(["x-anylabeling"], {"token": "secret"}, {}) == "secret"
    assert token_of(["cvat"], {"token": "secret"}, {}) is None
    assert token_of(["roboflow"], {}, {"api_key": "secret"}) == "secret"
    assert token_of(["cvat"], {}, {"api_key": "secret"}) is None
    assert token_of([], {"token": "secret", **basic("user:secret")}, {"api_key": "secret"}) is None
    assert token_of(["cvat"], {"authorization": "Basic ???"}, {}) is None
    assert token_of(["cvat"], {"authorization": "Basic /w=="}, {}) is None


def test_without_wires_none_of_their_paths_is_there(engine):
    with serving(engine, wires=()) as client:
        for path in PATHS:
            assert client.get(path).status_code == 404
        for path in ("/predict", "/sam/", "/sam2/segment_image", "/api/function_invocations"):
            assert client.post(path, json={}).status_code in (404, 405)


def test_the_names_of_the_command_line_are_files():
    for name in WIRES:
        assert callable(import_module(f"samfast.serve.wires.{name.replace('-', '_')}").router)
