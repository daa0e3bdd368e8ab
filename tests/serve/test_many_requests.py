"""Ten thousand clicks of 64 clients through a socket: none is lost, each has the engine's masks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from benchmarks.serve_load import Connection, Judge, Load, body_of, clicks
from samfast import coco_rle
from samfast.engine import SamFast
from samfast.recipes import RECIPES
from samfast.types import Prompts
from tests.model.tiny import fast, random_sam
from tests.serve.running import picture, pixels_of, serving, tiny_engine


def own_counts(
    sam: SamFast, files: list[bytes], places: list[list[tuple[int, int]]]
) -> list[list[list[str]]]:
    """For each image and click, COCO's text of the three masks of the engine alone."""
    found = []
    for data, each in zip(files, places, strict=True):
        embedding = sam.embed([pixels_of(data)])
        answers: list[Any] = [
            sam.predict(embedding, [Prompts(points=[[list(click)]], labels=[[1]])])[0]
            for click in each
        ]
        found.append(
            [[coco_rle.encode(mask)["counts"] for mask in masks.masks[0]] for masks in answers]
        )
    return found


def ask(sam: SamFast, requests: int, clients: int, http_processes: int = 0) -> Judge:
    """Let clients click; all must be answered. What was found of the masks is returned."""
    files = [picture(i, 60 + i % 40, 50 + i % 30) for i in range(clients)]
    places = clicks(files)
    judge, left = Judge(own_counts(sam, files, places)), requests

    def more() -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    with serving(sam, http_processes, batch_objects=clients) as (address, service):
        load = Load(int(address.rsplit(":", 1)[1]), files, places)

        async def work() -> None:
            await load.upload()
            await load.run(clients, more, judge)

        asyncio.run(work())
        assert load.statuses == {"200": requests}
        assert judge.masks == 3 * requests
        route = 'samfast_requests_total{route="/v1/images/{id}/predict",status="200"}'
        counted = f"{route} {requests + clients}.0"
        end = time.monotonic() + 10  # a request is counted just after its answer is sent
        while counted not in service.metrics.text().decode() and time.monotonic() < end:
            time.sleep(0.05)
        assert counted in service.metrics.text().decode()
    return judge


def looped() -> SamFast:
    """An engine that decodes image by image, as that of the fastest recipe for a CPU does."""
    return fast(random_sam(), RECIPES["fp32_sdpa"])


def assert_the_engines(judge: Judge, recipe: str) -> None:
    """To the bit where images are decoded one by one. What else is in a packed batch may change the
    last bits of logits, and so single pixels whose logit is within rounding of the threshold.
    """
    if recipe == "looped":
        assert judge.equal == judge.masks
    assert judge.equal > 0.99 * judge.masks
    assert judge.most_pixels <= 2


ENGINES = {"looped": looped, "packed": tiny_engine}


@pytest.mark.parametrize("http_processes", [0, 2])
@pytest.mark.parametrize("recipe", ENGINES)
def test_hundreds_of_requests_are_answered_with_the_engines_masks(recipe, http_processes):
    judge = ask(ENGINES[recipe](), requests=400, clients=16, http_processes=http_processes)
    assert_the_engines(judge, recipe)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("http_processes", [0, 2])
@pytest.mark.parametrize("recipe", ENGINES)
def test_ten_thousand_requests_are_answered_with_the_engines_masks(recipe, http_processes):
    judge = ask(ENGINES[recipe](), requests=10_000, clients=64, http_processes=http_processes)
    assert_the_engines(judge, recipe)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_clients_some_slow_and_some_vanishing_leave_no_memory_behind():
    files = [picture(i) for i in range(20)]
    places = clicks(files)
    with serving(tiny_engine(), mask_bytes=1 << 20) as (address, service):
        port = int(address.rsplit(":", 1)[1])
        load = Load(port, files, places)

        async def vanish() -> None:
            connection = Connection(port)
            await connection.ask("GET", "/healthz")
            connection.send_and_leave(load.path(0), body_of(places[0][0]))

        async def slow() -> int:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = body_of(places[1][0])
            writer.write(
                f"POST {load.path(1)} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: "
                f"application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            )
            for place in range(len(body)):
                writer.write(body[place : place + 1])
                await asyncio.sleep(0.01)
            status = int((await reader.readline()).split()[1])
            writer.close()
            return status

        def resident() -> int:
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        async def work() -> list[int]:
            await load.upload()
            memory = []
            for _ in range(6):
                left = 1600

                def more() -> bool:
                    nonlocal left
                    left -= 1
                    return left >= 0

                answers = await asyncio.gather(
                    load.run(160, more),
                    *(vanish() for _ in range(20)),
                    *(slow() for _ in range(20)),
                )
                assert answers[-20:] == [200] * 20
                assert load.statuses == {"200": 1600}
                memory.append(resident())
            return memory

        memory = asyncio.run(work())
        assert max(memory[3:]) - memory[2] < 16 << 20, memory
        end = httpx.get(f"{address}/metrics").text
        assert 'samfast_queue_depth{operation="decode",urgency="click"} 0.0' in end
        assert service.metrics is not None
