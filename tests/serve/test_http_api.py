"""The HTTP API as its clients see it: the contract, the formats of masks, and the errors."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import samfast
from samfast import coco_rle
from samfast.serve.service import SegmentationService
from samfast.types import Prompts
from tests.serve.running import api, picture, pixels_of, started, tiny_engine

DATA = picture(1)
ID = hashlib.sha256(DATA).hexdigest()
CLICK = {"points": [[40, 30]], "labels": [1]}

Work = Callable[[httpx.AsyncClient, SegmentationService], Awaitable[None]]


def with_api(work: Work, headers: dict[str, str] | None = None, **settings: Any) -> None:
    """Run a test's work against an application of its own."""

    async def run() -> None:
        async with (
            started(tiny_engine(), **settings) as service,
            api(service, **(headers or {})) as client,
        ):
            await work(client, service)

    asyncio.run(asyncio.wait_for(run(), 120))


def own_masks(**options: Any) -> Any:
    prompts = Prompts(points=[CLICK["points"]], labels=[CLICK["labels"]])
    return tiny_engine().predict([pixels_of(DATA)], [prompts], **options)[0]


def error_of(answer: httpx.Response) -> tuple[int, str]:
    """The status and the code; the body has exactly the contract's form."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["message"]
    return answer.status_code, body["error"]["code"]


def test_upload_as_the_body_as_a_form_and_as_a_path(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "photo.png").write_bytes(DATA)

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        known = {"id": ID, "width": 90, "height": 60}
        for answer in (
            await client.post("/v1/images", content=DATA),
            await client.post("/v1/images", content=DATA, headers={"content-type": "image/png"}),
            await client.post("/v1/images", files={"file": ("x.png", DATA)}),
            await client.post("/v1/images", json={"path": "a/photo.png"}),
        ):
            assert answer.status_code == 201
            assert answer.json() == known
        assert (await client.get(f"/v1/images/{ID}")).content == DATA

    with_api(work, root=tmp_path)


def test_predict_answers_as_the_contract_says():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.post("/v1/images", content=DATA)
        answer = await client.post(f"/v1/images/{ID}/predict", json={"objects": [CLICK]})
        assert answer.status_code == 200
        (one,) = answer.json()["objects"]
        wanted = own_masks()
        assert len(one["masks"]) == 3
        for k, mask in enumerate(one["masks"]):
            assert set(mask) == {"segmentation", "predicted_iou", "area", "bbox", "ref"}
            assert set(mask["segmentation"]) == {"size", "counts"}
            dense = coco_rle.decode(mask["segmentation"])
            assert np.array_equal(dense, wanted.masks[0, k].numpy())
            assert mask["area"] == dense.sum()
        again = {**CLICK, "mask": one["masks"][0]["ref"], "box": [5, 5, 80, 55]}
        answer = await client.post(
            f"/v1/images/{ID}/predict", json={"objects": [again, CLICK], "multimask": False}
        )
        assert [len(each["masks"]) for each in answer.json()["objects"]] == [1, 1]
        none = await client.post(f"/v1/images/{ID}/predict", json={"objects": []})
        assert none.json() == {"objects": []}

    with_api(work)


@pytest.mark.parametrize("format", ["rle", "polygons", "png", "packed"])
def test_every_format_is_the_same_mask(format):
    def mask_in(segmentation: dict[str, Any]) -> np.ndarray:
        height, width = segmentation["size"]
        if format == "rle":
            return coco_rle.decode(segmentation)
        if format == "png":
            return np.asarray(Image.open(io.BytesIO(base64.b64decode(segmentation["png"]))))
        if format == "packed":
            bits = np.frombuffer(base64.b64decode(segmentation["bits"]), np.uint8)
            return np.unpackbits(bits, count=height * width).reshape(height, width) == 1
        from skimage.draw import polygon2mask

        mask = np.zeros((height, width), bool)
        for each in segmentation["polygons"]:
            rings = [each["exterior"], *each["holes"]]
            for ring in rings:  # even-odd, at the centres of pixels
                mask ^= polygon2mask((height, width), np.array(ring)[:, ::-1] - 0.5)
        return mask

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.post("/v1/images", content=DATA)
        answer = await client.post(
            f"/v1/images/{ID}/predict", json={"objects": [CLICK], "format": format}
        )
        assert answer.status_code == 200
        wanted = own_masks()
        for k, mask in enumerate(answer.json()["objects"][0]["masks"]):
            assert np.array_equal(mask_in(mask["segmentation"]), wanted.masks[0, k].numpy())

    with_api(work)


def test_one_call_with_an_id_a_path_and_bytes(tmp_path):
    (tmp_path / "photo.png").write_bytes(DATA)

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        answers = []
        for image in (
            {"data": base64.b64encode(DATA).decode()},
            {"path": "photo.png"},
            {"id": ID},
        ):
            answer = await client.post("/v1/predict", json={"image": image, "objects": [CLICK]})
            assert answer.status_code == 200
            assert answer.json()["image"] == {"id": ID, "width": 90, "height": 60}
            masks = answer.json()["objects"][0]["masks"]
            answers.append([mask["segmentation"] for mask in masks])
        assert answers[0] == answers[1] == answers[2]
        for wrong in ({}, {"id": ID, "path": "photo.png"}, {"data": "*"}):
            answer = await client.post("/v1/predict", json={"image": wrong, "objects": [CLICK]})
            assert error_of(answer) == (422, "bad_request")

    with_api(work, root=tmp_path)


def test_everything_is_one_record_a_line():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.post("/v1/images", content=DATA)
        options = {"points_per_side": 4, "pred_iou_thresh": -9, "stability_score_thresh": 0}
        (wanted,) = tiny_engine().segment([pixels_of(DATA)], **options)
        answer = await client.post(f"/v1/images/{ID}/segment", json=options)
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        records = [json.loads(line) for line in answer.text.splitlines()]
        assert records == json.loads(json.dumps(list(wanted)))
        assert records
        answer = await client.post(f"/v1/images/{ID}/segment", json={**options, "progress": True})
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert lines[0] == {"done": 16, "total": 16}
        assert lines[1:] == records
        answer = await client.post(f"/v1/images/{ID}/segment")
        assert answer.status_code == 200
        answer = await client.post(f"/v1/images/{'0' * 64}/segment", json=options)
        assert error_of(answer) == (404, "not_found")

    with_api(work)


def test_an_embedding_can_be_held_by_the_client_and_given_back(tmp_path):
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.post("/v1/images", content=DATA)
        answer = await client.get(f"/v1/images/{ID}/embedding")
        assert answer.status_code == 200
        (tmp_path / "e.safetensors").write_bytes(answer.content)
        held = samfast.load_embeddings(tmp_path / "e.safetensors")
        assert held == tiny_engine().embed([pixels_of(DATA)])
        before = await client.post(f"/v1/images/{ID}/predict", json={"objects": [CLICK]})
        assert (await client.delete(f"/v1/images/{ID}")).status_code == 204
        gone = await client.post(f"/v1/images/{ID}/predict", json={"objects": [CLICK]})
        assert error_of(gone) == (404, "not_found")
        put = await client.put(f"/v1/images/{ID}/embedding", content=answer.content)
        assert put.json() == {"id": ID, "width": 90, "height": 60}
        after = await client.post(f"/v1/images/{ID}/predict", json={"objects": [CLICK]})
        counts = [
            [mask["segmentation"] for mask in each.json()["objects"][0]["masks"]]
            for each in (before, after)
        ]
        assert counts[0] == counts[1]
        for damaged in (b"", b"x" * 100, answer.content[:-1], answer.content[:-9] + b"123456789"):
            put = await client.put(f"/v1/images/{ID}/embedding", content=damaged)
            assert error_of(put) == (422, "bad_embedding")

    with_api(work)


def test_an_embedding_of_another_model_is_refused(tmp_path):
    from samfast.recipes import RECIPES
    from tests.model.tiny import fast, random_sam

    other = fast(random_sam(seed=5), RECIPES["fp32_sdpa"])
    samfast.save_embeddings(other.embed([pixels_of(DATA)]), tmp_path / "e.safetensors")
    two = tiny_engine().embed([pixels_of(DATA)] * 2)
    samfast.save_embeddings(two, tmp_path / "two.safetensors")

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        for name in ("e", "two"):
            data = (tmp_path / f"{name}.safetensors").read_bytes()
            put = await client.put(f"/v1/images/{ID}/embedding", content=data)
            assert error_of(put) == (422, "bad_embedding")

    with_api(work)


def test_health_readiness_metrics_and_the_page():
    async def run() -> None:
        from samfast.serve.settings import Settings

        service = SegmentationService(tiny_engine(), Settings())
        async with api(service) as client:
            assert (await client.get("/healthz")).status_code == 200
            assert error_of(await client.get("/readyz")) == (503, "not_ready")
            await service.start()
            assert (await client.get("/readyz")).json() == {"status": "ready"}
            await client.post("/v1/images", content=DATA)
            await client.post(f"/v1/images/{ID}/predict", json={"objects": [CLICK]})
            text = (await client.get("/metrics")).text
            for line in (
                'samfast_requests_total{route="/v1/images/{id}/predict",status="200"} 1.0',
                'samfast_batch_jobs_count{operation="decode"} 1.0',
                'samfast_batch_size_count{operation="encode"} 1.0',
                'samfast_stage_seconds_count{stage="decode"} 1.0',
                'samfast_stage_seconds_count{stage="decode_queue"} 1.0',
                'samfast_embedding_lookups_total{tier="encoded"} 1.0',
                'samfast_queue_depth{operation="decode",urgency="click"} 0.0',
            ):
                assert line in text, line
            page = await client.get("/")
            assert page.status_code == 200
            assert page.headers["content-type"].startswith("text/html")
            assert (await client.get("/docs")).status_code == 200
            await service.drain()
            assert error_of(await client.get("/readyz")) == (503, "not_ready")

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_request_that_takes_too_long_is_504():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        import time

        await client.post("/v1/images", content=DATA)
        await client.post(f"/v1/images/{ID}/predict", json={"objects": [CLICK]})
        predict = service.sam.predict_rle_batch

        def slow(*args: Any, **options: Any) -> Any:
            time.sleep(0.6)
            return predict(*args, **options)

        service.sam.predict_rle_batch = slow  # type: ignore[method-assign]
        answer = await client.post(f"/v1/images/{ID}/predict", json={"objects": [CLICK]})
        assert error_of(answer) == (504, "too_slow")

    with_api(work, request_seconds=0.3)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/images/xyz", None, 422),
        ("GET", f"/v1/images/{'0' * 64}", None, 404),
        ("DELETE", f"/v1/images/{'0' * 64}", None, 404),
        ("POST", f"/v1/images/{'0' * 64}/predict", {"objects": [CLICK]}, 404),
        ("POST", f"/v1/images/{ID}/predict", {"objects": [{"points": [[1]], "labels": [1]}]}, 422),
        ("POST", f"/v1/images/{ID}/predict", {"objects": [CLICK], "format": "dense"}, 422),
        ("POST", f"/v1/images/{ID}/predict", {"objects": [{**CLICK, "labels": [2]}]}, 422),
        ("POST", f"/v1/images/{ID}/predict", {"objects": [{**CLICK, "boxes": []}]}, 422),
        ("POST", f"/v1/images/{ID}/predict", {"objects": [{**CLICK, "mask": "none"}]}, 404),
        ("POST", f"/v1/images/{ID}/predict", {"objects": [{"points": [[1e300, 1]]}]}, 422),
        ("POST", f"/v1/images/{ID}/predict", {"objects": [CLICK] * 300}, 413),
        ("POST", f"/v1/images/{ID}/predict", [], 422),
        ("POST", f"/v1/images/{ID}/segment", {"points_per_side": 0}, 422),
        ("POST", "/v1/images", {"path": "a.png"}, 403),
        ("POST", "/v1/images", {"url": "http://127.0.0.1/a.png"}, 422),
        ("POST", "/v1/prewarm", {"paths": ["a.png"]}, 403),
        ("PATCH", "/v1/images", None, 405),
        ("GET", "/v2", None, 404),
    ],
)
def test_mistakes_have_the_right_status_and_one_form(method, path, body, status):
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.post("/v1/images", content=DATA)
        answer = await client.request(method, path, json=body)
        assert error_of(answer)[0] == status, answer.text

    with_api(work)


@pytest.mark.parametrize(
    ("kind", "encoding", "status"),
    [
        ("application/json", "utf-8", 200),
        ("Application/JSON; charset=utf-8", "utf-8", 200),
        ("application/merge-patch+json", "utf-8", 200),
        ("application/json", "utf-16", 200),
        ("application/json", "utf-8-sig", 200),
        ("text/plain", "utf-8", 422),
    ],
)
def test_a_click_is_json_in_any_encoding_that_json_has(kind, encoding, status):
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        await client.post("/v1/images", content=DATA)
        body = json.dumps({"objects": [CLICK]}).encode(encoding)
        headers = {"content-type": kind}
        answer = await client.post(f"/v1/images/{ID}/predict", content=body, headers=headers)
        assert answer.status_code == status
        if status != 200:
            assert error_of(answer) == (422, "bad_request")

    with_api(work)


def test_prewarm_is_accepted_at_once(tmp_path):
    (tmp_path / "photo.png").write_bytes(DATA)

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        answer = await client.post("/v1/prewarm", json={"paths": ["photo.png"], "ids": [ID]})
        assert answer.status_code == 202
        assert answer.json() == {"accepted": 2}
        for _ in range(200):
            await asyncio.sleep(0.02)
            if service._cache.in_memory(ID) is not None:
                return
        raise AssertionError("it was not embedded")

    with_api(work, root=tmp_path)


def test_the_openapi_document_has_an_example_for_every_body():
    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        document = (await client.get("/openapi.json")).json()
        paths = {path for path in document["paths"] if path.startswith("/v1")}
        assert paths == {
            "/v1/images",
            "/v1/images/{id}",
            "/v1/images/{id}/predict",
            "/v1/images/{id}/segment",
            "/v1/images/{id}/embedding",
            "/v1/predict",
            "/v1/prewarm",
            "/v1/scenes",
            "/v1/scenes/info",
            "/v1/scenes/tile",
            "/v1/scenes/predict",
        }
        models = document["components"]["schemas"]
        for name in (
            "PredictModel",
            "OneCallModel",
            "SegmentModel",
            "PrewarmModel",
            "ImageModel",
            "ScenePredictModel",
        ):
            assert models[name]["examples"]
        assert "HTTPValidationError" not in models, "errors have one form"

    with_api(work)


def test_a_click_is_answered_in_few_kilobytes():
    photo = Path(__file__).parents[2] / "docs" / "images" / "coins.jpg"

    async def work(client: httpx.AsyncClient, service: SegmentationService) -> None:
        image = (await client.post("/v1/images", content=photo.read_bytes())).json()
        answer = await client.post(f"/v1/images/{image['id']}/predict", json={"objects": [CLICK]})
        # Three masks of random weights, which are noisier than a model's.
        assert len(answer.content) < 60_000

    with_api(work)
