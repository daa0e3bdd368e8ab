"""A `samfast label` or `samfast serve` process of its own, which tests may kill."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import skimage

SKIMAGE_DATA = Path(skimage.__file__).parent / "data"
CUP = "coffee.png"
"""600 x 400, by Rachel Michetti, CC0."""
CAT = "chelsea.png"
"""451 x 300, by Stefan van der Walt, CC0."""


def photo_folder(folder: Path) -> Path:
    """A folder with two photos."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CUP, CAT):
        shutil.copy(SKIMAGE_DATA / name, folder / name)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Server:
    """A server with the packaged model; arguments as on the command line, without the port."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start it, again on the same port; returns when it is ready."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "samfast", *self.arguments, "--port", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            assert self._process.poll() is None, f"the server ended: {self._process.returncode}"
            try:
                if httpx.get(f"{self.address}/readyz").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError("the server was not ready within 120 s")

    def kill(self) -> None:
        """End it as `kill -9` does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(20)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(40)
            finally:
                self._process.kill()

    def predict(self, photo: bytes, prompts: dict[str, Any], *, multimask: bool) -> Any:
        """The API's masks of one object of a photo."""
        added = httpx.post(f"{self.address}/v1/images", content=photo, timeout=60).json()
        body = {"objects": [prompts], "multimask": multimask, "format": "rle"}
        answer = httpx.post(
            f"{self.address}/v1/images/{added['id']}/predict", json=body, timeout=60
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["objects"][0]["masks"]


def annotations_of(folder: Path) -> dict[str, Any]:
    """What annotations.json holds."""
    loaded: dict[str, Any] = json.loads((folder / "annotations.json").read_bytes())
    return loaded
