"""What nobody should be able to do to the server: leave the root, fill its memory, hold it up."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from samfast.errors import InputError
from samfast.serve.app import PAGE
from samfast.serve.image_store import resolve_below
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings, is_loopback
from tests.serve.running import api, picture, serving, started, tiny_engine

DATA = picture(1)
ID = hashlib.sha256(DATA).hexdigest()
CLICK = {"points": [[40, 30]], "labels": [1]}
TOKEN = "correct-horse-battery-staple"

Work = Callable[[httpx.AsyncClient, SegmentationService], Awaitable[None]]


def with_api(work: Work, headers: dict[str, str] | None = None, **settings: Any) -> None:
    async def run() -> None:
        async with (
            started(tiny_engine(), **settings) as service,
            api(service, **(headers or {})) as client,
        ):
            await work(client, service)

    asyncio.run(asyncio.wait_for(run(), 120))


# -------------------------------------------------------------------------------------- the root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    home = tmp_path / "root"
    (home / "inside").mkdir(parents=True)
    (home / "inside" / "photo.png").write_bytes(DATA)
    (tmp_path / "secret.png").write_bytes(picture(2))
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2" / "near.png").write_bytes(picture(3))
    if sys.platform != "win32":
        (home / "link.png").symlink_to(tmp_path / "secret.png")
        (home / "folder").symlink_to(tmp_path)
        (home / "good.png").symlink_to(home / "inside" / "photo.png")
        (home / "loop").symlink_to(home / "loop")
        os.mkfifo(home / "pipe.png")
    return home


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "inside/../../secret.png",
        "/etc/passwd",
        "//etc/passwd",
        "link.png",
        "folder/secret.png",
        "folder/root-2/near.png",
        "../root-2/near.png",
        "loop",
        "pipe.png",
        "inside",
        "",
        ".",
        "..",
        "..\\secret.png",
        "C:\\windows\\win.ini",
        "inside/photo.png\0.jpg",
        "file:///etc/passwd",
        "http://127.0.0.1:1/a.png",
        "~/secret.png",
        "inside/" * 600 + "photo.png",
        "x" * 4000,
    ],
)
def test_no_path_leaves_the_root(root, path):
    with pytest.raises(ProblemError) as error:
        resolve_below(root, path)
    assert error.value.status in (400, 404)
    if "secret" in path:
        assert "secret.png" not in str(error.value).replace(repr(path), "")

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        answer = await client.post("/v1/images", json={"path": path})
        assert answer.status_code in (400, 404, 422)

    with_api(work, root=root)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
def test_what_is_below_the_root_is_served_through_links_too(root):
    for path in ("inside/photo.png", "good.png", "inside/../inside/photo.png"):
        assert resolve_below(root, path) == (root / "inside" / "photo.png").resolve()


def test_a_file_that_changed_is_not_given_out_under_its_old_id(root):
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.post("/v1/images", json={"path": "inside/photo.png"})
        assert (await client.get(f"/v1/images/{ID}")).content == DATA
        (root / "inside" / "photo.png").write_bytes(picture(9))
        assert (await client.get(f"/v1/images/{ID}")).status_code == 404

    with_api(work, root=root)


def test_the_page_gives_out_no_file_but_its_own():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/....//app.py"):
            assert (await client.get(path)).status_code == 404

    assert (PAGE.parent / "app.py").is_file()
    with_api(work)


# ------------------------------------------------------------------------------- who may ask


def test_the_token_is_needed_for_all_but_the_page_the_description_and_health():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        for method, path in (
            ("POST", "/v1/images"),
            ("GET", f"/v1/images/{ID}"),
            ("GET", "/metrics"),
            ("GET", "/docs/"),
            ("GET", "/no/such/path"),
            ("POST", "/healthz/../v1/images"),
        ):
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": f"Basic {TOKEN}"},
                {"authorization": TOKEN},
                {"authorization": f"Bearer {TOKEN}x"},
                {"authorization": f"Bearer {TOKEN[:-1]}"},
            ):
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == 401, (path, headers)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "unauthorized"
        good = {"authorization": f"Bearer {TOKEN}"}
        assert (await client.post("/v1/images", content=DATA, headers=good)).status_code == 201
        raw = {b"authorization": "Bearer gehört".encode("latin-1")}
        assert (await client.get("/metrics", headers=raw)).status_code == 401

    with_api(work, token=TOKEN)


def test_the_comparison_of_tokens_takes_constant_time(monkeypatch):
    import hmac

    compared = []

    compare = hmac.compare_digest

    def watched(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return compare(given, wanted)

    monkeypatch.setattr(hmac, "compare_digest", watched)

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.get("/metrics", headers={"authorization": "Bearer x"})

    with_api(work, token=TOKEN)
    assert compared == [(b"x", TOKEN.encode())]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org", ""])
def test_off_loopback_a_token_is_required(host):
    assert not is_loopback(host)
    with pytest.raises(InputError, match="token is required"):
        Settings(host=host)
    assert TOKEN not in repr(Settings(host=host, token=TOKEN))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_loopback_needs_none(host):
    Settings(host=host)


def test_other_sites_in_a_browser_are_refused():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        for headers in (
            {"host": "evil.example"},  # a name that resolves to this machine
            {"host": "127.0.0.1.evil.example"},
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": "http://127.0.0.1:9999"},
        ):
            answer = await client.post("/v1/images", content=DATA, headers=headers)
            assert answer.status_code == 403, headers
        for headers in (
            {"origin": "http://127.0.0.1"},
            {"host": "localhost:8000", "origin": "http://localhost:8000"},
            {"host": "[::1]:8000"},
        ):
            answer = await client.post("/v1/images", content=DATA, headers=headers)
            assert answer.status_code == 201, headers
            assert not [name for name in answer.headers if name.startswith("access-control")]

    with_api(work)


# ----------------------------------------------------------------------------- hostile images


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int = 100_000) -> bytes:
    """A PNG of 10^10 pixels in a few bytes."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + png_chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
        + png_chunk(b"IEND", b"")
    )


def saved(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(buffer, format, **options)
    return buffer.getvalue()


HOSTILE = {
    "empty": b"",
    "text": b"GET / HTTP/1.1",
    "pickle": pickle.dumps({"a": np.zeros(3)}),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n%%EOF\n",
    "pdf": b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n",
    "bomb": png_bomb(),
    "cut jpeg": saved("JPEG")[:300],
    "cut webp": saved("WEBP")[:60],
    "cut tiff": saved("TIFF")[:100],
    "half a png": DATA[: len(DATA) // 2],
    "png without pixels": b"\x89PNG\r\n\x1a\n"
    + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)),
    "floats": (lambda b: (Image.new("F", (5, 5)).save(b, "TIFF"), b.getvalue())[1])(io.BytesIO()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_refused_in_words(name):
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        for answer in (
            await client.post("/v1/images", content=HOSTILE[name]),
            await client.post("/v1/images", files={"file": ("../../etc/x.png", HOSTILE[name])}),
        ):
            assert answer.status_code in (413, 422), answer.text
            assert answer.json()["error"]["message"]
            assert "/tmp" not in answer.text
            assert "Traceback" not in answer.text
        good = await client.post("/v1/images", content=DATA)
        assert good.status_code == 201

    with_api(work)


def test_the_limits_of_pixels_and_bytes_and_points():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        answer = await client.post("/v1/images", content=picture(1, 200, 200))
        assert answer.status_code == 413
        answer = await client.post("/v1/images", content=bytes(300_000))
        assert answer.status_code == 413
        await client.post("/v1/images", content=DATA)
        many = {"points": [[1, 1]] * 51, "labels": [1] * 51}
        answer = await client.post(f"/v1/images/{ID}/predict", json={"objects": [many]})
        assert answer.status_code == 413

    with_api(work, max_image_pixels=10_000, max_image_bytes=200_000, max_points=50)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"objects":' * 20_000,
        b'{"objects": [{"points": [[NaN, 1]], "labels": [1]}]}',
        b'{"objects": [{"points": [[1e999, 1]], "labels": [1]}]}',
        b'{"objects": [{"points": [[1, 1]], "labels": [1' + b"0" * 10_000 + b"]}]}",
        b'{"objects": [{"points": [["a", "b"]], "labels": [1]}]}',
        b'{"objects": {"0": 1}}',
        b'\xff\xfe{"objects": []}',
        b"",
        b"null",
        b'{"objects": [' + b"{}," * 5000 + b"{}]}",
    ],
)
def test_hostile_json_is_refused_and_costs_nothing(body):
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.post("/v1/images", content=DATA)
        start = time.perf_counter()
        headers = {"content-type": "application/json"}
        answer = await client.post(f"/v1/images/{ID}/predict", content=body, headers=headers)
        assert answer.status_code in (400, 413, 422), answer.text
        assert set(answer.json()) == {"error"}
        assert time.perf_counter() - start < 5

    with_api(work)


def test_large_json_is_refused_before_it_is_parsed():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        body = b'{"objects": [' + b"[[]]," * 100_000 + b"[]]}"
        for kind in ("application/json", "application/vnd.api+json", ""):
            answer = await client.post(
                f"/v1/images/{ID}/predict", content=body, headers={"content-type": kind}
            )
            assert answer.status_code == 413

    with_api(work, max_json_bytes=100_000)


# -------------------------------------------------------------------------- hostile connections


IN_PROCESSES = pytest.mark.parametrize("http_processes", [0, 1])


def open_to(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def answer_of(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


@IN_PROCESSES
def test_slow_and_silent_connections_are_ended(http_processes):
    with serving(tiny_engine(), http_processes, upload_seconds=0.6) as (address, _):
        silent, slow_headers, slow_body = (open_to(address) for _ in range(3))
        slow_headers.sendall(b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        head = b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n"
        slow_body.sendall(head)
        start = time.monotonic()
        for _ in range(4):
            time.sleep(0.1)
            slow_headers.sendall(b"x")
            slow_body.sendall(b"x")
        status, body = answer_of(slow_body)
        assert (status, body["error"]["code"]) == (408, "too_slow")
        for connection in (silent, slow_headers):
            assert connection.recv(100) == b""
        assert time.monotonic() - start < 10
        for connection in (silent, slow_headers, slow_body):
            connection.close()
        assert httpx.post(f"{address}/v1/images", content=DATA).status_code == 201


@IN_PROCESSES
def test_lengths_that_lie_and_bodies_without_an_end(http_processes):
    with serving(tiny_engine(), http_processes, max_image_bytes=100_000, upload_seconds=2) as (
        address,
        _,
    ):
        huge = open_to(address)
        huge.sendall(
            b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
            b"Content-Length: 99999999999999\r\n\r\n"
        )
        assert answer_of(huge)[0] == 413
        huge.close()
        endless = open_to(address)
        endless.sendall(
            b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
        try:
            for _ in range(100):
                endless.sendall(chunk)
        except OSError:
            pass  # the server has answered and closed
        else:
            assert answer_of(endless)[0] == 413
        endless.close()
        for garbage in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\r\n" * 100, bytes(3000)):
            broken = open_to(address)
            broken.sendall(garbage)
            broken.close()
        assert httpx.post(f"{address}/v1/images", content=DATA).status_code == 201


@IN_PROCESSES
def test_bodies_of_all_requests_together_are_bounded(http_processes):
    with serving(tiny_engine(), http_processes, body_bytes=300_000, upload_seconds=20) as (
        address,
        _,
    ):
        head = (
            b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
            b"Content-Length: 200000\r\n\r\n"
        )
        first, second = open_to(address), open_to(address)
        first.sendall(head + bytes(190_000))
        time.sleep(0.3)
        second.sendall(head + bytes(190_000))
        status, body = answer_of(second)
        assert (status, body["error"]["code"]) == (429, "overloaded")
        first.close()
        second.close()
        time.sleep(0.3)
        assert httpx.post(f"{address}/v1/images", content=DATA).status_code == 201


@IN_PROCESSES
def test_requests_at_once_are_bounded_and_those_that_ended_do_not_count(http_processes):
    with serving(tiny_engine(), http_processes, max_requests=4, max_image_bytes=1000) as (
        address,
        _,
    ):
        head = b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\n"
        waiting = [open_to(address) for _ in range(4)]
        for each in waiting:
            each.sendall(head)
        time.sleep(0.5)
        refused = httpx.get(f"{address}/healthz")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        for each in waiting:
            each.close()
        time.sleep(0.5)
        # Bodies that were too large are given back as well, chunk by chunk.
        for _ in range(10):
            chunks = (bytes(40_000) for _ in range(3))
            answer = httpx.post(f"{address}/v1/images", content=chunks)
            assert answer.status_code == 413
        assert httpx.get(f"{address}/healthz").status_code == 200


@IN_PROCESSES
def test_clients_that_vanish_leave_nothing_behind(http_processes):
    with serving(tiny_engine(), http_processes) as (address, service):
        assert httpx.post(f"{address}/v1/images", content=DATA).status_code == 201
        body = json.dumps({"objects": [CLICK] * 20}).encode()
        head = (
            f"POST /v1/images/{ID}/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        for number in range(60):
            leaving = open_to(address)
            leaving.sendall(head + body[: None if number % 2 else 10])
            leaving.close()
        answer = httpx.post(
            f"{address}/v1/images/{ID}/predict", json={"objects": [CLICK]}, timeout=30
        )
        assert answer.status_code == 200
        end = time.monotonic() + 20
        while time.monotonic() < end:
            text = service.metrics.text().decode()
            if 'samfast_queue_depth{operation="decode",urgency="click"} 0.0' in text:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("jobs of clients that left still wait")


# ------------------------------------------------------------------------------ schemathesis


@pytest.mark.timeout(280)
def test_schemathesis_finds_no_failure(tmp_path):
    pytest.importorskip("schemathesis")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "street.jpg").write_bytes(saved("JPEG"))
    config = tmp_path / "schemathesis.toml"
    config.write_text(f'[parameters]\n"path.id" = "{ID}"\n')
    checks = "positive_data_acceptance"  # prompts that fit the schema need not fit the image
    with serving(tiny_engine(), root=tmp_path, max_grid_points=300) as (address, _):
        assert httpx.post(f"{address}/v1/images", content=DATA).status_code == 201
        command = [
            sys.executable,
            "-c",
            "from schemathesis.cli import schemathesis; schemathesis()",
        ]
        done = subprocess.run(
            [
                *command,
                *("--config-file", str(config), "run", f"{address}/openapi.json"),
                *("--phases", "examples,coverage,fuzzing", "--checks", "all"),
                *("--exclude-checks", checks, "--max-examples", "10", "--seed", "1"),
                *("--request-timeout", "60", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        metrics = httpx.get(f"{address}/metrics").text
        # /readyz was asked while the model was loaded.
        lines = [
            line for line in metrics.splitlines() if "status=" in line and "readyz" not in line
        ]
        statuses = {line.split('status="')[1][:3] for line in lines}
        assert "200" in statuses
        assert not {each for each in statuses if each.startswith("5")}
