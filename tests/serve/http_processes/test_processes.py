"""With HTTP in processes of their own a server answers as without, whatever happens to them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from samfast.cli.console import CommandLineError
from samfast.cli.serve_command import listening
from samfast.errors import InputError
from samfast.serve.app import create_app
from samfast.serve.http_processes import process_pool
from samfast.serve.http_processes.pooled_server import PooledServer, shared_port
from samfast.serve.http_processes.process_pool import process_count, share_of
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings
from tests.serve.running import picture, serving, tiny_engine
from tests.serve.test_http_api import CLICK, DATA, ID

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HTTP processes need Linux")

ROOT = Path(__file__).resolve().parents[3]

CLICK_PATH = f"/v1/images/{ID}/predict"


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def none_open(service: SegmentationService) -> bool:
    return b"\nsamfast_open_requests 0.0" in service.metrics.text()


def pids_of_http_processes(parent: int | None = None) -> list[int]:
    """The HTTP processes that a process, this one if not told otherwise, has started."""
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            ours = int(fields[1]) == (parent or os.getpid()) and fields[0] != "Z"
            if ours and process_pool.START.encode() in words:
                pids.append(int(entry))
    return pids


def same_for_each(response: httpx.Response) -> Any:
    """What of an answer does not depend on when or by whom it was given."""
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("date", "content-length", "transfer-encoding")
    }
    if response.headers.get("content-type") != "application/json":
        return response.status_code, headers, response.content
    value = response.json()
    for each in value.get("objects", ()):
        for mask in each["masks"]:
            del mask["ref"]
    return response.status_code, headers, value


def test_every_kind_of_request_has_the_same_answer_as_from_one_process():
    click = {"objects": [CLICK, {"box": [5, 5, 80, 55]}]}
    other = picture(8)
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/v1/images", {"content": DATA}),
        ("POST", "/v1/images", {"files": {"file": other}}),
        ("POST", "/v1/images", {"content": b"no image"}),
        ("POST", CLICK_PATH, {"json": click}),
        ("POST", CLICK_PATH, {"json": {**click, "multimask": False}}),
        *(("POST", CLICK_PATH, {"json": {**click, "format": kind}}) for kind in ("png", "packed")),
        ("POST", CLICK_PATH, {"json": {"objects": []}}),
        ("POST", CLICK_PATH, {"json": {"objects": [{}]}}),
        ("POST", CLICK_PATH, {"json": {"objects": 3}}),
        ("POST", CLICK_PATH, {"content": b"{"}),
        ("POST", CLICK_PATH, {"json": {"objects": [{"points": [[900, 3]], "labels": [1]}]}}),
        ("POST", CLICK_PATH, {"json": {"objects": [{"mask": "none"}]}}),
        ("POST", CLICK_PATH.replace(ID, "0" * 64), {"json": click}),
        ("POST", CLICK_PATH.replace(ID, "no"), {"json": click}),
        ("GET", CLICK_PATH, {}),
        ("POST", "/v1/predict", {"json": {"image": {"id": ID}, **click}}),
        ("POST", f"/v1/images/{ID}/segment", {"json": {"points_per_side": 2}}),
        ("GET", f"/v1/images/{ID}", {}),
        ("GET", f"/v1/images/{ID}/embedding", {}),
        ("HEAD", "/", {}),
        ("GET", "/", {}),
        ("GET", "/app.js", {}),
        ("GET", "/nothing?a=1", {}),
        ("GET", "/openapi.json", {}),
        ("GET", "/healthz", {"headers": {"host": "example.com"}}),
        ("GET", "/healthz", {"headers": {"origin": "http://example.com"}}),
        ("DELETE", f"/v1/images/{ID}", {}),
        ("DELETE", f"/v1/images/{ID}", {}),
    ]
    answers = []
    for count in (0, 2):
        with serving(tiny_engine(), count) as (address, service):
            with httpx.Client(base_url=address, timeout=60) as client:
                assert len(pids_of_http_processes()) == count
                answers.append(
                    [same_for_each(client.request(*each[:2], **each[2])) for each in requests]
                )
            metrics = service.metrics.text().decode()
            counted = 'samfast_requests_total{route="/v1/images/{id}/predict",status='
            for status in ("200", "404", "422"):
                assert f'{counted}"{status}"' in metrics
            assert 'samfast_requests_total{route="other",status="403"} 2.0' in metrics
            assert eventually(partial(none_open, service))
    for request, one, several in zip(requests, *answers, strict=True):
        if request[2].get("headers"):  # refused before anything is read, in each process by itself
            one, several = one[::2], several[::2]
        assert one == several, request


def test_the_token_is_asked_for_in_each_process():
    secret = "a secret of many letters"
    with serving(tiny_engine(), 2, token=secret) as (address, service):
        for header, status in (
            ({}, 401),
            ({"authorization": "Bearer wrong"}, 401),
            ({"authorization": f"Bearer {secret}"}, 404),
        ):
            for _ in range(4):  # each is a connection of its own
                answer = httpx.post(
                    f"{address}{CLICK_PATH}", json={"objects": [CLICK]}, headers=header
                )
                assert answer.status_code == status
        assert httpx.get(f"{address}/healthz").status_code == 200
        refused = b'samfast_requests_total{route="other",status="401"} 8.0'
        assert eventually(lambda: refused in service.metrics.text())


def test_a_process_that_dies_is_replaced_and_its_clicks_are_dropped():
    with serving(tiny_engine(), 2) as (address, _):
        assert httpx.post(f"{address}/v1/images", content=DATA).status_code == 201
        before = pids_of_http_processes()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        assert eventually(lambda: len(pids_of_http_processes()) == 2)
        after = pids_of_http_processes()
        assert before[1] in after
        assert before[0] not in after
        for _ in range(8):
            answer = httpx.post(f"{address}{CLICK_PATH}", json={"objects": [CLICK]}, timeout=60)
            assert answer.status_code == 200
    assert pids_of_http_processes() == []


def held(service: SegmentationService) -> threading.Event:
    """Keeps the device's thread from decoding until the event is set."""
    go_on, decode = threading.Event(), service._tasks.sam.predict_rle_batch

    def waiting(*args: Any, **options: Any) -> Any:
        assert go_on.wait(60)
        return decode(*args, **options)

    service._tasks.sam.predict_rle_batch = waiting  # type: ignore[method-assign]
    return go_on


def test_clicks_that_take_too_long_or_whose_client_leaves_are_dropped():
    with serving(tiny_engine(), 1, request_seconds=0.5) as (address, service):
        assert httpx.post(f"{address}/v1/images", content=DATA).status_code == 201
        assert httpx.post(f"{address}{CLICK_PATH}", json={"objects": [CLICK]}).status_code == 200
        go_on = held(service)
        try:
            answer = httpx.post(f"{address}{CLICK_PATH}", json={"objects": [CLICK]}, timeout=60)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "too_slow")
            assert answer.headers["retry-after"] == "5"
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}{CLICK_PATH}", json={"objects": [CLICK]}, timeout=0.2)
            # The first is with the device; the second waits, and is taken out.
            dropped = b"samfast_dropped_jobs_total 2.0"
            assert eventually(lambda: dropped in service.metrics.text())
        finally:
            go_on.set()
        assert eventually(lambda: none_open(service))


def test_too_many_clicks_are_refused_with_a_time_to_try_again():
    with serving(tiny_engine(), 1, max_queued=1, batch_objects=1) as (address, service):
        assert httpx.post(f"{address}/v1/images", content=DATA).status_code == 201
        assert httpx.post(f"{address}{CLICK_PATH}", json={"objects": [CLICK]}).status_code == 200
        go_on = held(service)

        async def clicks() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                asking = [
                    asyncio.ensure_future(client.post(CLICK_PATH, json={"objects": [CLICK]}))
                    for _ in range(6)
                ]
                await asyncio.sleep(1)
                go_on.set()
                return await asyncio.gather(*asking)

        answers = asyncio.run(clicks())
        refused = [each for each in answers if each.status_code == 429]
        assert 200 in {each.status_code for each in answers}
        assert len(refused) >= 4
        assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
        assert {each.json()["error"]["code"] for each in refused} == {"overloaded"}


def test_what_was_accepted_is_answered_when_the_server_ends():
    async def work() -> None:
        service = SegmentationService(tiny_engine(), Settings())
        app = create_app(service, service.settings)
        server = PooledServer(app, service, (), logging.WARNING)
        sock = listening(Settings(port=0))
        address = f"http://127.0.0.1:{sock.getsockname()[1]}"
        running = asyncio.ensure_future(server.serve(shared_port(sock, 2)))
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            assert (await client.post("/v1/images", content=DATA)).status_code == 201
            body = {"objects": [CLICK]}
            assert (await client.post(CLICK_PATH, json=body)).status_code == 200
            go_on = held(service)
            asking = asyncio.ensure_future(client.post(CLICK_PATH, json=body))
            slow = asyncio.ensure_future(client.post("/v1/images", content=picture(5)))
            await asyncio.sleep(0.5)
            server.should_exit = True
            await asyncio.sleep(0.5)
            go_on.set()
            assert (await asking).status_code == 200
            assert (await slow).status_code == 201
        await running
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{address}/healthz")

    asyncio.run(asyncio.wait_for(work(), 120))
    assert pids_of_http_processes() == []


def test_a_server_whose_processes_cannot_be_kept_running_ends(monkeypatch, caplog):
    monkeypatch.setattr(process_pool, "START", "import samfast.no_such_module")

    async def work() -> PooledServer:
        service = SegmentationService(tiny_engine(), Settings())
        app = create_app(service, service.settings)
        server = PooledServer(app, service, (), logging.WARNING)
        await server.serve(shared_port(listening(Settings(port=0)), 1))
        return server

    assert asyncio.run(asyncio.wait_for(work(), 120)).failed
    assert "cannot be kept running" in caplog.text


def test_two_servers_never_share_a_port():
    with serving(tiny_engine(), 1) as (address, _):
        port = int(address.rpartition(":")[2])
        with pytest.raises(CommandLineError, match="choose another"):
            listening(Settings(port=port))


KILLED_PARENT = """
import sys
from samfast.cli.main import main
sys.exit(main(["serve", "--port", "0", "--device", "cpu", "--http-processes", "2"]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_processes_end_with_the_one_that_has_the_model(number, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    # A folder of photos may hold anything, which is no code of the server's.
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", KILLED_PARENT],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stderr is not None
    lines: list[str] = []
    while not lines or "http://" not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    address = lines[-1].split(" at ")[1].strip().rstrip("/")
    reading = threading.Thread(target=lambda: lines.extend(process.stderr or []), daemon=True)
    reading.start()
    answer = httpx.get(f"{address}/healthz", timeout=60)
    assert answer.status_code == 200
    pids = pids_of_http_processes(process.pid)
    assert len(pids) == 2
    process.send_signal(number)
    code = process.wait(60)
    assert code == (0 if number != signal.SIGKILL else -signal.SIGKILL)

    def ended(pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    assert eventually(lambda: all(map(ended, pids)))
    reading.join(10)
    process.stderr.close()
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert [each for each in logged if each["event"] == "request"]
    if number != signal.SIGKILL:
        assert not list(tmp_path.glob("samfast-*"))
        assert not [each for each in logged if each["level"] not in ("info",)]


def test_the_processes_import_no_torch():
    code = "import sys, samfast.serve.http_processes.http_process; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_how_many_processes_there_are(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert process_count(None, "cuda") == 8
    assert process_count(None, "cpu") == 0
    assert process_count(3, "cpu") == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    assert process_count(None, "cuda") == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(99)))
    assert process_count(None, "cuda") == process_pool.MOST_PROCESSES
    monkeypatch.setattr(sys, "platform", "darwin")
    assert process_count(None, "cuda") == process_count(0, "cuda") == 0
    with pytest.raises(InputError, match="Linux"):
        process_count(1, "cuda")


def test_a_number_of_processes_below_none_is_refused():
    with pytest.raises(InputError, match="http_processes=-1"):
        Settings(http_processes=-1)


def test_the_shares_of_all_processes_are_the_limits_of_one():
    settings = Settings(max_requests=10, body_bytes=1 << 30, max_image_bytes=1 << 20)
    share = share_of(settings, 4)
    assert share.max_requests == 3
    assert share.body_bytes == 1 << 28
    # An image that may be sent at all may be sent to each.
    assert share_of(Settings(), 64).body_bytes > Settings().max_image_bytes
    assert share_of(Settings(body_bytes=1000), 4).body_bytes == 1000
