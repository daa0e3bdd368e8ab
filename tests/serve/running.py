"""What tests of the server share: a tiny engine, photos as files, and a server on a free port."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from samfast.engine import SamFast
from samfast.recipes import RECIPES
from samfast.serve.app import create_app, public_paths
from samfast.serve.http_processes.pooled_server import PooledServer, shared_port
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings
from samfast.serve.timed_connections import timed
from tests.model.tiny import fast, random_sam


def tiny_engine(batch_size: int = 1) -> SamFast:
    """A SAM of 128 pixels a side that decodes prompts of different images together."""
    recipe = dataclasses.replace(RECIPES["fp32_sdpa"], prompts="packed")
    return fast(random_sam(), recipe, batch_size=batch_size)


def picture(seed: int, width: int = 90, height: int = 60) -> bytes:
    """A PNG of random blocks, different for each seed."""
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
    pixels = blocks.repeat(10, 0).repeat(10, 1)[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    """The pixels of such a file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@asynccontextmanager
async def started(sam: SamFast, **settings: Any) -> AsyncIterator[SegmentationService]:
    """A service that is ready; drained at the end."""
    service = SegmentationService(sam, Settings(**settings))
    await service.start()
    try:
        yield service
    finally:
        await service.drain()


@asynccontextmanager
async def api(service: SegmentationService, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application around a service, without a socket between."""
    app = create_app(service, service.settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", headers=headers, timeout=60
    ) as client:
        yield client


@contextmanager
def serving(
    sam: SamFast, http_processes: int = 0, **settings: Any
) -> Iterator[tuple[str, SegmentationService]]:
    """A server on a free port of this machine, on a thread: its address and its service.

    http_processes  how many processes speak HTTP for it
    """
    service = SegmentationService(sam, Settings(**settings))
    app = create_app(service, service.settings, service.settings.wires)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        app, log_config=None, timeout_graceful_shutdown=20, ws="none", server_header=False
    )
    server = (
        PooledServer(app, service, public_paths(), logging.WARNING)
        if http_processes
        else uvicorn.Server(timed(config, service.settings.upload_seconds))
    )
    sockets = shared_port(listening, http_processes) if http_processes else [listening]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets)))
    thread.start()
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        yield address, service
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
