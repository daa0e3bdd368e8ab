"""`samfast serve` as a process: its first click, its end by signals, its refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from samfast.__main__ import main
from tests.serve.running import picture

ROOT = Path(__file__).resolve().parents[2]
CLICK = {"objects": [{"points": [[40, 30]], "labels": [1]}]}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


class Process:
    """A server's process; what it writes to stderr is collected."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "samfast",
                "serve",
                "--port",
                "0",
                "--device",
                "cpu",
                *arguments,
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        end = time.monotonic() + 120
        while not (found := [line for line in self.lines if " at http://" in line]):
            assert time.monotonic() < end, self.lines
            assert self.process.poll() is None, self.lines
            time.sleep(0.01)
        self.address = found[0].split(" at ")[1].strip().rstrip("/")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextmanager
def server(*arguments: str) -> Iterator[Process]:
    running = Process(*arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGKILL)


def click(address: str, image_id: str) -> httpx.Response:
    return httpx.post(f"{address}/v1/images/{image_id}/predict", json=CLICK, timeout=120)


@pytest.mark.timeout(280)
def test_from_the_first_click_to_the_end_by_signals(tmp_path):
    store, token = tmp_path / "store", "a-token-of-some-length"
    (tmp_path / "token").write_text(token + "\n")
    with server("--store", str(store)) as running:
        data = picture(1)
        image = httpx.post(f"{running.address}/v1/images", content=data, timeout=120).json()
        before = click(running.address, image["id"])
        assert before.status_code == 200
        assert httpx.get(f"{running.address}/readyz").status_code == 200

        # SIGTERM: what was accepted is answered.
        other = httpx.post(f"{running.address}/v1/images", content=picture(2), timeout=120).json()
        answers: list[Any] = []
        asking = [
            threading.Thread(target=lambda: answers.append(click(running.address, other["id"])))
            for _ in range(5)
        ]
        for each in asking:
            each.start()
        end = time.monotonic() + 30
        while time.monotonic() < end:  # until all five are inside
            text = httpx.get(f"{running.address}/metrics").text
            counted = [x for x in text.splitlines() if x.startswith("samfast_open_requests ")]
            if float(counted[0].split()[1]) >= 6 or len(answers) == 5:
                break
        assert running.end(signal.SIGTERM) == 0
        for each in asking:
            each.join(60)
        assert [each.status_code for each in answers] == [200] * 5
        logged = [json.loads(line) for line in running.lines if line.startswith("{")]
        requests = [line for line in logged if line["event"] == "request"]
        assert {"method", "path", "status", "seconds", "client", "time", "level"} <= set(
            requests[0]
        )
        assert not [line for line in logged if line["level"] in ("error", "critical")]

    kept = {path.stem for path in store.rglob("*.safetensors")}
    assert kept == {image["id"], other["id"]}
    with server("--store", str(store), "--token-file", str(tmp_path / "token")) as running:
        # Neither the image is sent again nor encoded, and the masks are the same.
        assert click(running.address, image["id"]).status_code == 401
        again = httpx.post(
            f"{running.address}/v1/images/{image['id']}/predict",
            json=CLICK,
            headers={"Authorization": f"Bearer {token}"},
            timeout=120,
        )
        masks = [
            [mask["segmentation"] for mask in answer.json()["objects"][0]["masks"]]
            for answer in (before, again)
        ]
        assert masks[0] == masks[1]
        assert running.end(signal.SIGKILL) == -signal.SIGKILL
    assert {path.stem for path in store.rglob("*.safetensors")} == kept
    assert not [path for path in store.rglob("*") if path.is_file() and path.stem not in kept]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "token is required"),
        (["--root", "no/such/folder"], "no such folder"),
        (["--wire", "cvat,telegraph"], "telegraph"),
        (["--port", "70000"], "not a port"),
        (["--token-file", "no-such-file"], "cannot be read"),
        (["--token-file", "SHORT"], "at least 16"),
        (["--batch-objects", "0"], "at least 1"),
    ],
)
def test_wrong_usage_is_one_line(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SHORT").write_text("short")
    monkeypatch.setattr("sys.argv", ["samfast", "serve", *arguments])
    assert main() == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("http_processes", ["0", "2"])
def test_a_port_that_is_taken_is_said_and_nothing_is_left(
    monkeypatch, capsys, tmp_path, http_processes
):
    import socket

    from samfast.cli import serve_command
    from tests.serve.running import tiny_engine

    monkeypatch.setattr(serve_command, "load_model", lambda args: tiny_engine())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["samfast", "serve", "--port", port, "--http-processes", http_processes]
        monkeypatch.setattr("sys.argv", arguments)
        assert main() == 2
    assert f"port {port}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
