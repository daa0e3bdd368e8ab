"""A click gets the same answer without FastAPI as with it, and its client is not forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, MutableMapping
from itertools import product
from typing import Any

import httpx
import pytest
import torch

from samfast.errors import PromptError
from samfast.prompts.validation import check
from samfast.serve.device_tasks import _surely_fits
from samfast.serve.http_answers import UNWATCHED_SECONDS, answer_within
from samfast.serve.mask_refs import MaskRefs
from samfast.serve.messages import ObjectPrompt
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService
from samfast.types import Prompts
from tests.serve.test_http_api import CLICK, DATA, ID, error_of, with_api

PATH = f"/v1/images/{ID}/predict"
USUAL, OTHER = "application/json", "application/json; charset=utf-8"


def without_names(answer: httpx.Response) -> Any:
    """The answer's JSON without `ref`, which is new in each."""
    value = answer.json()
    for each in value["objects"]:
        for mask in each["masks"]:
            del mask["ref"]
    return value


def test_fastapi_gives_the_same_answers():
    async def parts(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.post("/v1/images", content=DATA)
        body = json.dumps({"objects": [CLICK, {"box": [5, 5, 80, 55]}]}).encode()
        answers = [
            await client.post(PATH, content=content, headers={"content-type": kind})
            for kind, content in ((USUAL, body), (USUAL, parts(body)), (OTHER, body))
        ]
        assert [each.status_code for each in answers] == [200] * 3
        assert {each.headers["content-type"] for each in answers} == {"application/json"}
        first, *others = map(without_names, answers)
        assert all(each == first for each in others)
        route = 'samfast_requests_total{route="/v1/images/{id}/predict",status="200"} 3.0'
        assert route in service.metrics.text().decode()

    with_api(work)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"objects": 1}',
        b'{"objects": [{"points": [[4000, 3]], "labels": [1]}]}',
        b'{"objects": [{"points": [[4, 3]], "labels": []}]}',
        b'{"objects": [{"mask": "none"}]}',
        b'{"objects": [{}]}',
    ],
)
def test_fastapi_gives_the_same_errors(body):
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        for path in (PATH, PATH.replace(ID, "0" * 64), PATH.replace(ID, "no")):
            await client.post("/v1/images", content=DATA)
            one, other = [
                await client.post(path, content=body, headers={"content-type": kind})
                for kind in (USUAL, OTHER)
            ]
            assert error_of(one) == error_of(other)
            assert one.json() == other.json()
            assert one.status_code in (404, 422)

    with_api(work)


def test_what_surely_fits_is_never_refused():
    places = (-1.0, 0.0, 3.5, 40.0, 41.0, float("nan"))
    boxes = (None, (0.0, 0.0, 40.0, 30.0), (3.0, 3.0, 3.0, 9.0), (0.0, 0.0, 41.0, 3.0))
    sure = 0
    for x, y, label, box in product(places, places, (0, 1, 2), boxes):
        prompt = ObjectPrompt(((x, y), (1.0, 2.0)), (label, 1), box)
        if _surely_fits(prompt, (30, 40)):
            sure += 1
            wanted = Prompts(points=[prompt.points], labels=[prompt.labels], boxes=box and [box])
            check(wanted, (30, 40), (256, 256), "here")
    assert sure > 20
    assert not _surely_fits(ObjectPrompt(), (30, 40))
    with pytest.raises(PromptError):
        check(Prompts(), (30, 40), (256, 256), "here")


class Client:
    """The receiving side of a client that leaves after some seconds, or never."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def receive(self) -> MutableMapping[str, Any]:
        await asyncio.sleep(self._seconds)
        return {"type": "http.disconnect"}


@pytest.mark.parametrize(("leaves", "limit", "status"), [(0.0, 9.0, 499), (99.0, 0.1, 504)])
def test_work_ends_when_nobody_waits_for_it(leaves, limit, status):
    async def run() -> None:
        ended, before = asyncio.Event(), asyncio.all_tasks()

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        with pytest.raises(ProblemError) as caught:
            await answer_within(Client(leaves).receive, limit, work())
        assert caught.value.status == status
        assert ended.is_set()
        # No task of the client's is left.
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(run(), 20))


def test_what_is_done_in_time_is_answered_and_its_own_errors_are_its_own():
    async def run() -> None:
        async def late() -> int:
            await asyncio.sleep(3 * UNWATCHED_SECONDS)
            return 5

        async def failing() -> int:
            raise TimeoutError("of the work")

        assert await answer_within(Client(99).receive, 9, late()) == 5
        with pytest.raises(TimeoutError, match="of the work"):
            await answer_within(Client(99).receive, 9, failing())
        waiting = asyncio.ensure_future(answer_within(Client(99).receive, 9, asyncio.sleep(60)))
        await asyncio.sleep(2 * UNWATCHED_SECONDS)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_mask_that_is_used_no_longer_holds_its_batch():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.post("/v1/images", content=DATA)
        answer = await client.post(PATH, json={"objects": [CLICK] * 4})
        ref = answer.json()["objects"][2]["masks"][1]["ref"]
        before = await service.low_res(ref, ID)
        assert (await client.post(PATH, json={"objects": [{"mask": ref}]})).status_code == 200
        kept = service._refs.get(ref, ID)
        assert kept.untyped_storage().nbytes() == 3 * kept.nbytes
        assert torch.equal(kept, before)

    with_api(work)


def test_the_bytes_of_masks_stay_within_their_bound():
    refs = MaskRefs(12 * 1024)
    for number in range(9):
        batch = torch.arange(4.0)[:, None, None, None].repeat(1, 2, 16, 16) + number
        batch[:, 1] += 0.5
        refs.put(f"{number}", ["image"] * 4, batch)
        assert refs.bytes <= 12 * 1024
    refs.detach("8-3.1")
    assert refs.bytes == 12 * 1024
    kept = refs.get("8-3.1", "image")
    assert torch.equal(kept, torch.full((1, 16, 16), 11.5))
    assert kept.untyped_storage().nbytes() == 2 * kept.nbytes
    refs.detach("gone")
    for ref in ("8-3.2", "8-3.-1", "8-3.01", "8-3.", "8-3", "8.0", "", ".0", "0-0.0"):
        with pytest.raises(ProblemError):
            refs.get(ref, "image")
    with pytest.raises(ProblemError):
        refs.get("8-3.1", "another")
    refs.remove("image")
    assert refs.bytes == 0


class OnGpu(torch.Tensor):
    """Logits that say they are on a GPU, where a batch is kept as it came."""

    is_cpu = False


def test_a_batch_on_a_gpu_is_kept_whole_and_a_used_row_by_itself_for_longer():
    def batch(number: int) -> Any:
        values = torch.arange(4.0)[:, None, None, None].repeat(1, 2, 16, 16) + number
        return values.as_subclass(OnGpu)

    size = batch(0).nbytes
    refs = MaskRefs(2 * size)
    refs.put("0", ["a", "b", "a", "b"], batch(0))
    with pytest.raises(ProblemError):
        refs.get("0-1.0", "a")
    refs.detach("0-1.0")
    refs.detach("0-1.1")  # again, which changes nothing
    assert refs.bytes == size + size // 4
    assert torch.equal(refs.get("0-1.0", "b"), torch.full((1, 16, 16), 1.0))
    assert refs.get("0-1.0", "b").untyped_storage().nbytes() == size // 4
    refs.put("1", ["a"] * 4, batch(10))  # and the first batch goes, without the row
    assert refs.bytes == size + size // 4
    assert torch.equal(refs.get("0-1.1", "b"), torch.full((1, 16, 16), 1.0))
    for ref in ("0-0.0", "0.0", "1.0", "1-4.0", "1-04.0"):
        with pytest.raises(ProblemError):
            refs.get(ref, "a")
    refs.remove("b")
    assert refs.bytes == size
    refs.put("2", ["a", "b", "a", "b"], batch(20))
    refs.remove("a")
    assert refs.bytes == size
    with pytest.raises(ProblemError):
        refs.get("2-0.0", "a")
    assert torch.equal(refs.get("2-3.0", "b"), torch.full((1, 16, 16), 23.0))
