"""The page at /docs works offline, and its commands do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html import unescape

import httpx
import pytest

from samfast.serve.api_page import api_page
from tests.serve.running import picture, serving, tiny_engine


def sections(page: str) -> dict[str, str]:
    """The sections of a page by their ids."""
    return dict(re.findall(r'<section id="([^"]+)">(.*?)</section>', page, re.S))


def test_it_needs_nothing_from_elsewhere_and_every_link_of_it_leads_somewhere():
    with serving(tiny_engine()) as (address, _):
        answer = httpx.get(f"{address}/docs")
        document = httpx.get(f"{address}/openapi.json").json()
    assert answer.headers["content-type"].startswith("text/html")
    page, here = answer.text, f"{address}/"
    assert not re.search(r"<(script|link|img|iframe)", page)
    assert not re.search(r"url\(|@import", page)
    assert {link for link in re.findall(r"https?://[^\s<'\"]+", page) if here not in link} == set()
    ids, links = set(sections(page)), re.findall(r'href="([^"]+)"', page)
    assert {link for link in links if link.removeprefix("#") not in ids} == {"openapi.json"}
    paths = document["paths"]
    assert len(ids) == sum(map(len, paths.values())) + len(document["components"]["schemas"])


def test_what_the_schema_says_is_escaped():
    document = {
        "info": {"title": "<b>", "version": "&", "summary": "<i>"},
        "paths": {
            "/<u>": {"get": {"description": "<s>", "responses": {"200": {"description": "<q>"}}}}
        },
        "components": {"schemas": {"A": {"properties": {"<p>": {"type": "<a>"}}}}},
    }
    page = api_page(document, "http://a/<h>")
    assert set(re.findall(r"<\w+>", page)) <= {
        *("<head>", "<style>", "<body>", "<h1>", "<h2>", "<h3>", "<p>", "<code>", "<nav>"),
        *("<ul>", "<li>", "<b>", "<pre>", "<title>", "<table>", "<tr>", "<td>"),
    }
    assert "<b>GET</b>" in page and "<title>&lt;b&gt;: HTTP API" in page


@pytest.mark.skipif(
    shutil.which("curl") is None,
    reason="the commands under test are curl's, which is not installed",
)
def test_its_commands_work_as_they_stand(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(picture(1, 640, 480))
    with serving(tiny_engine(), root=tmp_path) as (address, _):
        shown = sections(httpx.get(f"{address}/docs").text)

        def run(section: str, **variables: str) -> bytes:
            (command,) = re.findall("<pre>(.*?)</pre>", shown[section], re.S)
            return subprocess.run(
                ["bash", "-c", unescape(command).replace("curl ", "curl -s --fail ", 1)],
                cwd=tmp_path,
                env={**os.environ, **variables},
                check=True,
                capture_output=True,
            ).stdout

        stored = httpx.Response(200, content=run("post-v1-images")).json()
        assert (stored["width"], stored["height"]) == (640, 480)
        answer = httpx.Response(200, content=run("post-v1-images--id--predict", ID=stored["id"]))
        assert answer.json()["objects"][0]["masks"][0]["segmentation"]["size"] == [480, 640]
        assert run("post-v1-images--id--segment", ID=stored["id"]) is not None
        kept = run("get-v1-images--id--embedding", ID=stored["id"])
        (tmp_path / "embedding.safetensors").write_bytes(kept)
        assert run("put-v1-images--id--embedding", ID=stored["id"])
        assert run("get-v1-images--id-", ID=stored["id"]) == (tmp_path / "photo.jpg").read_bytes()
        assert b"samfast_requests_total" in run("get-metrics")
        assert run("delete-v1-images--id-", ID=stored["id"]) == b""
