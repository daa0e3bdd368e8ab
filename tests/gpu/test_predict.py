"""Packed and nested prompts on a GPU: nothing waits, few graphs serve every mix, answers are the
caller's to keep."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from samfast import Prompts, coco_rle
from samfast.decoding.decoder_output import OBJECTS_PER_CALL
from samfast.errors import EmbeddingsError, NumericsError, PromptError, UsageError
from samfast.prompts import pack
from samfast.recipes import RECIPES
from samfast.types import Masks, PackedPrompts
from tests.gpu.test_encoder_steps import CUDA, load, no_waiting, photos, relative, shared

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

PLAIN = replace(RECIPES["bf16_folded"], prompts="packed")
GRAPHED = replace(PLAIN, graph=True)
NESTED = replace(RECIPES["bf16_folded"], prompts="nested")
FP32 = replace(RECIPES["fp32_folded"], prompts="packed", graph=True)
EVERY = {"plain": PLAIN, "graphed": GRAPHED, "nested": NESTED, "fused": "fused"}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def clicks(count, seed=0, points=1):
    rng = np.random.default_rng(seed)
    return Prompts(points=rng.uniform(0, 17, (count, points, 2)), labels=np.ones((count, points)))


def boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    return Prompts(
        boxes=np.concatenate([rng.uniform(0, 8, (count, 2)), rng.uniform(9, 17, (count, 2))], 1)
    )


def ragged(*lengths):
    rng = np.random.default_rng(len(lengths))
    return Prompts(
        points=[rng.uniform(0, 17, (n, 2)) for n in lengths],
        labels=[np.arange(1, n + 1) % 2 for n in lengths],
    )


def mixes(side):
    masks = torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(1)).cuda()
    both = Prompts(points=[[], [[9, 9]]], labels=[[], [0]], boxes=[[3, 4, 16, 16], [1, 0, 9, 9]])
    return {
        "clicks": [clicks(3), clicks(1), clicks(0), clicks(7), clicks(2)],
        "ragged": [ragged(1, 4, 2), ragged(), ragged(3), ragged(1, 1), ragged(2, 9)],
        "boxes": [boxes(0), boxes(6), boxes(1), boxes(1), boxes(2)],
        "both": [both] * 5,
        "masks": [Prompts(masks=masks), Prompts(masks=masks[:1])] * 2 + [Prompts(masks=masks[:0])],
        "each its own": [clicks(3), boxes(5), Prompts(masks=masks), ragged(2, 5), both],
    }


@pytest.mark.parametrize("name", EVERY)
def test_predict_never_waits_for_the_gpu(name):
    sam = load(EVERY[name])
    embeddings = sam.embed(photos(5))
    every = mixes(sam.image_size // 4)
    for each in every.values():
        for multimask in (True, False):
            sam.predict(embeddings, each, multimask=multimask)  # recording and tuning do wait
    with no_waiting():
        for each in every.values():
            for multimask in (True, False):
                results = sam.predict(embeddings, each, multimask=multimask)
        sam.predict(embeddings[:1], [Prompts(masks=results[0].low_res[:, :1])])


@pytest.mark.parametrize("name", EVERY)
def test_nested_prompts_on_the_device_never_wait_for_it(name):
    sam = load(EVERY[name])
    embeddings = sam.embed(photos(5))
    lengths = (3, 0, 7, 1, 2)
    parts = [torch.rand(n, 2, 2, device="cuda") * 17 for n in lengths]
    coords: Any = torch.nested.nested_tensor(parts, layout=torch.jagged)
    labels = torch.nested.nested_tensor_from_jagged(
        torch.ones(13, 2, device="cuda"), coords.offsets()
    )
    first = sam.predict_batch(embeddings, coords, labels)
    with no_waiting():
        answer = sam.predict_batch(embeddings, coords, labels)
    low_res: Any = answer.low_res
    assert low_res.offsets() is coords.offsets()
    assert torch.equal(first.iou.values(), answer.iou.values())
    wanted = sam.predict(
        embeddings, [Prompts(points=each.cpu(), labels=np.ones((len(each), 2))) for each in parts]
    )
    assert relative(answer.low_res.values(), torch.cat([each.low_res for each in wanted])) < 4e-2
    assert len(answer.cpu()) == 5
    outside = torch.nested.nested_tensor_from_jagged(coords.values() * 1000, coords.offsets())
    with no_waiting():
        answer = sam.predict_batch(embeddings, outside, labels)
    with pytest.raises(PromptError, match="image 0, object 0"):
        answer.cpu()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("mix", list(mixes(1)) if torch.cuda.is_available() else [])
def test_every_way_answers_as_image_by_image(name, mix):
    """Rounding errors against fp32 are at most twice those that image by image makes in the same
    dtype."""
    sam, looped, exact = shared(EVERY[name]), shared("bf16_folded"), shared("fp32_folded")
    prompts = mixes(sam.image_size // 4)[mix]
    embeddings = exact.embed(photos(5))
    wanted = exact.predict(embeddings, prompts)
    for value in ("low_res", "iou"):
        truth = torch.cat([getattr(each, value) for each in wanted])
        errors = [
            relative(
                torch.cat([getattr(masks, value) for masks in each.predict(embeddings, prompts)]),
                truth,
            )
            for each in (sam, looped)
        ]
        assert errors[0] <= 2 * errors[1] + 1e-3, (value, errors)


@pytest.mark.parametrize("mix", list(mixes(1)) if torch.cuda.is_available() else [])
def test_in_fp32_they_are_equal(mix):
    torch.backends.cudnn.allow_tf32, before = False, torch.backends.cudnn.allow_tf32
    try:
        sam, looped = shared(FP32), shared("fp32_folded")
        prompts = mixes(sam.image_size // 4)[mix]
        embeddings = looped.embed(photos(5))
        for a, b in zip(
            sam.predict(embeddings, prompts), looped.predict(embeddings, prompts), strict=True
        ):
            if len(a):
                assert relative(a.low_res, b.low_res) < 1e-5 and relative(a.iou, b.iou) < 1e-5
                assert float((a.masks != b.masks).float().mean()) < 1e-4
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", ["graphed", "fused"])
def test_any_mix_within_the_sizes_is_recorded_once(name):
    sam = load(EVERY[name])
    graphs = sam.decode.graphs
    embeddings = sam.embed(photos(4))
    for seed, counts in enumerate([(8, 1, 5, 2), (3, 3, 3, 4), (1, 9, 4, 1), (13, 1, 1, 1)]):
        sam.predict(embeddings, [clicks(n, seed) for n in counts])
    assert graphs.recorded == 1
    for lengths in ((1, 4, 2), (3, 4), (4, 4, 4, 1)):  # up to 4 points: 5 tokens, filled up to 6
        sam.predict(embeddings, [ragged(*lengths)] * 4)
    layouts = [key[0] for key in graphs.keys]
    assert {(each.points, each.padded) for each in layouts} == {(1, False), (5, True)}
    assert graphs.recorded == len(layouts) == 3  # 8 and 16 objects of many points


@pytest.mark.parametrize(
    "recipe", ["fused", replace(RECIPES["fused"], graph=False), replace(FP32, fuse=True)], ids=str
)
def test_objects_of_low_predicted_iou_are_not_upscaled(recipe):
    sam = load(recipe, batch_size=2)
    features = sam.embed(photos(2)).features
    points = (
        torch.rand(2 * 9, 1, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        * 17
    )
    labels = torch.ones(18, 1, dtype=torch.int64)
    prompts = [PackedPrompts(points, labels, None, None, (0, 9, 18))]
    whole = sam.decode(features, prompts, multimask=True)
    best = whole.iou.amax(1)
    sam.decode(features, prompts, multimask=True, min_iou=0.0)  # recording does wait
    for least in (-9.0, float(best.median()), 9.0):
        with no_waiting():
            answer = sam.decode(features, prompts, multimask=True, min_iou=least)
        good = best > least
        assert torch.equal(answer.iou, whole.iou) and not answer.codes.any()
        assert torch.equal(answer.low_res[good], whole.low_res[good])
        assert not answer.low_res[~good].any()
    again = sam.decode(features, prompts, multimask=True)
    assert torch.equal(again.low_res, whole.low_res)


@pytest.mark.parametrize("name", EVERY)
def test_no_object_one_and_five_thousand(name):
    sam = load(EVERY[name])
    embeddings = sam.embed(photos(4))
    counts = (0, 1, 5000, 3)
    prompts = [clicks(n, seed) for seed, n in enumerate(counts)]
    results = sam.predict(embeddings, prompts, multimask=False)
    assert [len(each) for each in results] == list(counts)
    assert results[0].masks.shape == (0, 1, 60, 80)
    for i, at in ((1, 0), (2, 0), (2, 255), (2, 256), (2, 4999), (3, 2)):
        one = Prompts(points=prompts[i].points[at : at + 1], labels=[[1]])
        alone = sam.predict(embeddings[i], [one], multimask=False)[0]
        assert relative(results[i].low_res[at : at + 1], alone.low_res) < 4e-2
    assert len(results[2].cpu()) == 5000 > OBJECTS_PER_CALL["cuda"]


@pytest.mark.parametrize("name", EVERY)
def test_answers_survive_later_calls(name):
    sam = load(EVERY[name])
    embeddings = sam.embed(photos(5))
    every = mixes(sam.image_size // 4)
    first = {mix: sam.predict(embeddings, each) for mix, each in every.items()}
    kept = {mix: [(a.low_res.clone(), a.iou.clone()) for a in each] for mix, each in first.items()}
    other = sam.embed(photos(5, seed=3))
    for each in every.values():
        sam.predict(other, each)
    for mix, each in kept.items():
        for a, (low_res, iou), again in zip(
            first[mix], each, sam.predict(embeddings, every[mix]), strict=True
        ):
            assert torch.equal(a.low_res, low_res) and torch.equal(a.iou, iou)
            assert torch.equal(again.low_res, low_res)


@pytest.mark.parametrize("name", ["graphed", "fused"])
def test_a_graph_uses_weights_that_were_changed_or_replaced(name):
    sam, fresh = load(EVERY[name]), load("bf16_folded")
    embeddings = fresh.embed(photos(2))
    asked = [clicks(3), clicks(1)]
    sam.predict(embeddings, asked)
    for replaced in (False, True):
        for each in (sam, fresh):
            norm = each.model.mask_decoder.transformer.norm_final_attn
            with torch.no_grad():
                if replaced:
                    norm.weight = torch.nn.Parameter(norm.weight * 1.5)
                else:
                    norm.weight.mul_(0.5)
        got, wanted = sam.predict(embeddings, asked)[0], fresh.predict(embeddings, asked)[0]
        assert relative(got.low_res, wanted.low_res) < 4e-2
    sam.model.cpu()
    with pytest.raises(EmbeddingsError, match="are on cuda:0, the model on cpu"):
        sam.predict(embeddings, asked)
    with pytest.raises(UsageError, match="the decoder was loaded onto cuda"):
        sam.predict(embeddings.cpu(), asked)


def test_a_non_finite_answer_is_reported_when_it_is_read():
    sam = load(GRAPHED)
    embeddings = sam.embed(photos(3))
    features = embeddings.features.clone()
    features[1] = float("nan")
    asked = [clicks(2)] * 3
    sam.predict(embeddings, asked)
    with no_waiting():
        results = sam.predict(replace(embeddings, features=features), asked)
    assert len(results[0].cpu()) == len(results[2].cpu()) == 2
    with no_waiting():
        parts = [(each.masks[0, 0], each.best(), each.iou > 0.5) for each in results]
    for read in (Masks.cpu, Masks.verify, lambda each: each.masks.cpu(), lambda each: each.iou[0]):
        with pytest.raises(NumericsError, match="image 1, object 0"):
            repr(read(results[1]))
    for part, sound in zip(parts[1], parts[0], strict=True):
        with pytest.raises(NumericsError, match="image 1, object 0"):
            part.cpu()
        assert type(sound.cpu()) is torch.Tensor
    sam.predict(embeddings, asked)[1].cpu()  # nothing of it is left


@pytest.mark.parametrize("name", ["graphed", "nested"])
def test_threads_on_different_streams_get_the_right_answers(name):
    sam = load(EVERY[name])
    embeddings = [sam.embed(photos(2, seed=seed)) for seed in range(4)]
    asked = [[clicks(2 + seed, seed), clicks(1, seed)] for seed in range(4)]
    expected = [sam.predict(e, each)[0].low_res for e, each in zip(embeddings, asked, strict=True)]
    torch.cuda.synchronize()
    wrong = []

    def work(index):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                low_res = sam.predict(embeddings[index], asked[index])[0].low_res
                torch.cuda.current_stream().synchronize()
                if not torch.equal(low_res, expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_packed_prompts_of_more_images_than_fit_a_call():
    sam, looped = load(GRAPHED, batch_size=8), load("bf16_folded")
    embeddings = sam.embed(photos(70))
    asked = [boxes(1 + i % 3, i) for i in range(70)]
    batch = pack(
        asked, embeddings.original_sizes, embeddings.input_sizes, (sam.image_size // 4,) * 2
    )
    on_device = replace(batch, boxes=batch.boxes.to(CUDA))
    wanted = torch.cat([each.low_res for each in looped.predict(embeddings, asked)])
    for each in (batch, on_device):
        assert relative(sam.predict_batch(embeddings, each).low_res.values(), wanted) < 4e-2


def test_packed_prompts_have_their_texts_wherever_they_are():
    sam = load("fused")
    embeddings = sam.embed(photos(5))
    asked = [boxes(1 + i % 3, i) for i in range(5)]
    batch = pack(
        asked, embeddings.original_sizes, embeddings.input_sizes, (sam.image_size // 4,) * 2
    )
    on_device = replace(batch, boxes=batch.boxes.to(CUDA))
    wanted = sam.predict_rle(embeddings, asked)
    sizes = [list(masks.size) for masks in wanted for _ in masks.counts]
    for each in (batch, on_device):
        got = sam.predict_rle_batch(embeddings, [each])
        assert relative(got.low_res, torch.cat([masks.low_res for masks in wanted])) < 4e-2
        for size, text, area in zip(sizes, got.counts, got.areas.tolist(), strict=True):
            assert coco_rle.decode({"size": size, "counts": text}).sum() == area
    outside = replace(on_device, boxes=on_device.boxes * 1000)
    with pytest.raises(PromptError, match="image 0, object 0"):
        sam.predict_rle_batch(embeddings, [outside])


@pytest.mark.parametrize("recording", [False, True], ids=["warming up", "recording"])
def test_a_recording_without_memory_is_made_of_half_as_many_objects(monkeypatch, recording):
    sam, plain = load(GRAPHED), load(PLAIN)
    embeddings = plain.embed(photos(3))
    few, many = [clicks(2, seed=i) for i in range(3)], [clicks(17 + i, seed=i) for i in range(3)]
    sam.predict(embeddings, few)
    graphs, embed = sam.decode.graphs, sam.model.prompt_encoder.forward

    def forward(points, boxes, masks):
        answer = embed(points, boxes, masks)
        if len(answer[0]) > 32 and torch.cuda.is_current_stream_capturing() == recording:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(sam.model.prompt_encoder, "forward", forward)
        stream = torch.cuda.current_stream()
        got = [sam.predict(embeddings, asked) for asked in (many, few)]
        assert torch.cuda.current_stream() == stream
        assert {key[0].objects for key in graphs.keys} == {8, 32}
    got.append(sam.predict(embeddings, many))  # there is memory again
    assert {key[0].objects for key in graphs.keys} == {8, 32, 64}
    for asked, answer in zip((many, few, many), got, strict=True):
        for each, other in zip(answer, plain.predict(embeddings, asked), strict=True):
            assert (
                relative(each.low_res, other.low_res) < 2e-2
                and relative(each.iou, other.iou) < 2e-2
            )
