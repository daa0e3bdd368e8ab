"""Services that share their images among them, without Ray: whose an image is, and what happens
when its owner is gone.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from samfast.serve.image_owner import image_in_path, owners
from samfast.serve.image_store import content_id
from samfast.serve.messages import ObjectPrompt
from samfast.serve.problems import ProblemError
from samfast.serve.replicated_service import ReplicatedService
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings
from tests.serve.running import api, picture, tiny_engine

CLICK = ObjectPrompt(points=((40, 30),), labels=(1,))


class Neighbours:
    """Replicas of one process: what `RayPeers` is to those of several."""

    def __init__(self) -> None:
        self.services: dict[str, ReplicatedService] = {}
        self.calls: list[tuple[str, str]] = []

    def owner(self, image_id: str) -> str:
        return owners(image_id, self.services)[0]

    async def call(self, image_id: str, method: str, *args: Any, **options: Any) -> Any:
        self.calls.append((self.owner(image_id), method))
        service = self.services[self.owner(image_id)]
        return await getattr(SegmentationService, method)(service, *args, **options)

    async def stream(
        self, image_id: str, method: str, *args: Any, **options: Any
    ) -> AsyncGenerator[Any, None]:
        service = self.services[self.owner(image_id)]
        async for each in getattr(SegmentationService, method)(service, *args, **options):
            yield each

    async def call_all(self, method: str, *args: Any) -> Mapping[str, Any]:
        results: dict[str, Any] = {}
        for name, service in self.services.items():
            try:
                results[name] = await getattr(SegmentationService, method)(service, *args)
            except ProblemError as error:
                results[name] = error
        return results


def with_replicas(work: Callable[[Neighbours], Awaitable[None]], **settings: Any) -> None:
    """Run a test's work with two services, "a" and "b"."""

    async def run() -> None:
        peers = Neighbours()
        for name in ("a", "b"):
            service = ReplicatedService(tiny_engine(), Settings(**settings), peers)
            await service.start()
            peers.services[name] = service
        services = list(peers.services.values())
        try:
            await work(peers)
        finally:
            for service in services:
                await service.drain()

    asyncio.run(asyncio.wait_for(run(), 120))


def picture_of(peers: Neighbours, name: str) -> bytes:
    """A photo that belongs to the replica of that name."""
    return next(p for p in map(picture, range(99)) if peers.owner(content_id(p)) == name)


def test_images_are_spread_evenly_and_few_move_when_a_replica_comes():
    images = [content_id(bytes([i % 256, i // 256])) for i in range(2000)]
    before = {image: owners(image, ["a", "b", "c"])[0] for image in images}
    assert all(600 < count < 740 for count in Counter(before.values()).values())
    after = {image: owners(image, ["d", "c", "b", "a"])[0] for image in images}
    moved = {image for image in images if before[image] != after[image]}
    assert {after[image] for image in moved} == {"d"}
    assert 430 < len(moved) < 570
    # The second in order is the owner when the first is gone.
    for image in images[:50]:
        first, *later = owners(image, ["a", "b", "c"])
        assert owners(image, later) == later
        assert first not in later


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (f"/v1/images/{'a' * 64}", True),
        (f"/v1/images/{'a' * 64}/predict", True),
        (f"/v1/images/{'a' * 65}", False),
        (f"/v1/images/{'A' * 64}", False),
        (f"/x/v1/images/{'a' * 64}", False),
        ("/v1/images", False),
        ("/v1/predict", False),
    ],
)
def test_the_image_in_a_path(path, named):
    assert image_in_path(path) == ("a" * 64 if named else None)


def test_an_upload_goes_to_its_owner_whoever_receives_it(tmp_path):
    async def work(peers: Neighbours) -> None:
        data = picture_of(peers, "b")
        image = await peers.services["a"].add_image(data)
        assert image.id == content_id(data)
        here = {name: service._is_here(image.id) for name, service in peers.services.items()}
        assert here == {"a": False, "b": True}
        answers = [
            (await service.predict(image.id, [CLICK]))[0] for service in peers.services.values()
        ]
        masks = [[mask.counts for mask in each.masks] for each in answers]
        assert masks[0] == masks[1]
        # "b" has answered both, and so knows both masks.
        refined = ObjectPrompt(points=((40, 30),), labels=(1,), mask=answers[0].best().ref)
        await peers.services["a"].predict(image.id, [refined])
        assert await peers.services["a"].image_bytes(image.id) == data
        assert [name for name, _ in peers.calls] == ["b"] * len(peers.calls)

    with_replicas(work, store=str(tmp_path))


def test_a_path_below_the_root_and_a_list_to_prewarm_go_to_their_owners(tmp_path):
    async def work(peers: Neighbours) -> None:
        for name in ("a", "b"):
            (tmp_path / f"{name}.png").write_bytes(picture_of(peers, name))
        await peers.services["a"].prewarm(paths=["a.png", "b.png"])
        await asyncio.gather(*peers.services["a"]._prewarming)
        for name, service in peers.services.items():
            assert content_id(picture_of(peers, name)) in service._cache

    with_replicas(work, store=str(tmp_path / "store"), root=tmp_path)


def test_another_replica_answers_from_the_store_when_the_owner_is_gone(tmp_path):
    async def work(peers: Neighbours) -> None:
        image = await peers.services["a"].add_image(picture_of(peers, "b"))
        (before,) = await peers.services["b"].predict(image.id, [CLICK])
        lost = peers.services.pop("b")
        await lost.drain()
        (after,) = await peers.services["a"].predict(image.id, [CLICK])
        assert [m.counts for m in after.masks] == [m.counts for m in before.masks]
        lookups = peers.services["a"].metrics.lookups
        assert lookups.labels("store")._value.get() == 1
        assert lookups.labels("encoded")._value.get() == 0

    with_replicas(work, store=str(tmp_path))


def test_everything_in_an_image_of_another_replica_and_its_problems(tmp_path):
    async def work(peers: Neighbours) -> None:
        image = await peers.services["b"].add_image(picture_of(peers, "b"))
        lines = [
            line
            async for line in peers.services["a"].segment(
                image.id, {"points_per_side": 2, "pred_iou_thresh": 0.0}
            )
        ]
        assert lines[-1].keys() >= {"done"} or "segmentation" in lines[-1]
        with pytest.raises(ProblemError, match="is not here") as caught:
            await peers.services["a"].predict("0" * 64, [CLICK])
        assert caught.value.status == 404
        with pytest.raises(ProblemError, match="is not here"):
            async for _ in peers.services["a"].segment("0" * 64):
                pass

    with_replicas(work, store=str(tmp_path))


def test_a_deleted_image_is_forgotten_by_all(tmp_path):
    async def work(peers: Neighbours) -> None:
        data = picture_of(peers, "b")
        former = SegmentationService.add_image
        image = await former(peers.services["a"], data)
        await peers.services["b"].add_image(data)
        assert all(service._is_here(image.id) for service in peers.services.values())
        await peers.services["a"].remove(image.id)
        assert not any(service._is_here(image.id) for service in peers.services.values())
        with pytest.raises(ProblemError) as caught:
            await peers.services["a"].remove(image.id)
        assert caught.value.status == 404

    with_replicas(work, store=str(tmp_path))


def test_the_api_answers_for_all_replicas_whichever_is_asked(tmp_path):
    async def work(peers: Neighbours) -> None:
        data = picture_of(peers, "b")
        body = {
            "image": {"data": base64.b64encode(data).decode()},
            "objects": [{"points": [[40, 30]], "labels": [1]}],
        }
        async with api(peers.services["a"]) as client:
            answer = await client.post("/v1/predict", json=body)
            assert answer.status_code == 200
            image_id = answer.json()["image"]["id"]
            file = (await client.get(f"/v1/images/{image_id}/embedding")).content
            assert (await client.delete(f"/v1/images/{image_id}")).status_code == 204
            assert (await client.get(f"/v1/images/{image_id}")).status_code == 404
            put = await client.put(f"/v1/images/{image_id}/embedding", content=file)
            assert put.status_code == 200
            assert image_id in peers.services["b"]._cache
            text = (await client.get("/metrics")).text
        families = {each.name: each for each in text_string_to_metric_families(text)}
        depth = families["samfast_queue_depth"].samples
        assert {sample.labels["replica"] for sample in depth} == {"a", "b"}
        lookups = {
            (sample.labels["replica"], sample.labels["tier"]): sample.value
            for sample in families["samfast_embedding_lookups"].samples
            if sample.name.endswith("_total")
        }
        assert lookups["b", "encoded"] == 1
        assert ("a", "encoded") not in lookups

    with_replicas(work, store=str(tmp_path))
