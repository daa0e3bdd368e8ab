"""The engine: lists of images and ragged prompts in, masks out; its results are the model's own."""

from __future__ import annotations

import copy
import re
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import samfast
from samfast.decoding.decoder_output import OBJECTS_PER_CALL
from samfast.errors import (
    DeviceMemoryError,
    EmbeddingsError,
    ImageError,
    InputError,
    NumericsError,
    PromptError,
    RecipeError,
)
from samfast.images import Batcher, batch_loading, input_size, load_image, to_batch
from samfast.loading import random_weights
from samfast.masks import postprocess
from samfast.prompts import pack
from samfast.recipes import RECIPES
from tests.model.tiny import TINY, fast, random_sam

Prompts = samfast.Prompts
SIDE = TINY.image_size


@pytest.fixture(scope="module")
def sam():
    return fast(random_sam(), RECIPES["fp32_sdpa"], batch_size=2)


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(1)
    return [
        rng.integers(0, 255, size, dtype=np.uint8)
        for size in [(60, 80, 3), (128, 128, 3), (200, 90, 3)]
    ]


@pytest.fixture(scope="module")
def embeddings(sam, photos):
    return sam.embed(photos)


def alone(sam, embeddings, index, multimask=True, points=None, labels=None, box=None, mask=None):
    """One object, by calling the model as the original's predictor does."""
    height, width = embeddings.original_sizes[index]
    new_h, new_w = input_size((height, width), SIDE)
    scale = np.array([new_w / width, new_h / height])
    given = None
    if points is not None:
        given = (torch.tensor(np.array([points]) * scale).float(), torch.tensor([labels]))
    boxes = None if box is None else torch.tensor(np.array([box]) * np.tile(scale, 2)).float()
    with torch.no_grad():
        sparse, dense = sam.model.prompt_encoder(points=given, boxes=boxes, masks=mask)
        low, iou = sam.model.mask_decoder(
            image_embeddings=embeddings.features[index : index + 1],
            image_pe=sam.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        masks = sam.model.postprocess_masks(low, (new_h, new_w), (height, width)) > 0
    return low[0], iou[0], masks[0]


def close(a, b):
    return float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


def test_embeddings_do_not_depend_on_other_images(sam, photos, embeddings):
    assert embeddings.features.shape == (3, TINY.out_chans, SIDE // 16, SIDE // 16)
    assert embeddings.original_sizes == ((60, 80), (128, 128), (200, 90))
    for i, photo in enumerate(photos):
        assert close(sam.embed([photo]).features, embeddings.features[i : i + 1])


def test_predict_embeds_a_list_of_images_itself(sam, photos, embeddings):
    prompts = [Prompts(boxes=[[0, 0, 9, 9]]), Prompts(points=[[[5, 6]]], labels=[[1]])] * 2
    calls = []
    results = sam.predict(photos, prompts[:3], progress=lambda *each: calls.append(each))
    assert results == sam.predict(embeddings, prompts[:3])
    assert calls == [(2, 3), (3, 3)]  # two images are encoded at a time
    single = sam.predict([Image.fromarray(photos[0])], prompts[:1], multimask=False)
    assert single[0].masks.shape == (1, 1, 60, 80)


def test_progress_as_a_bar(sam, photos, capsys):
    sam.embed(photos, progress=True)
    assert "3/3" in capsys.readouterr().err
    sam.segment(photos[:1], points_per_side=2, progress=True)
    assert "4/4" in capsys.readouterr().err
    sam.embed(photos)
    assert capsys.readouterr().err == ""


def test_answers_and_embeddings_are_equal_by_their_contents(sam, embeddings):
    prompts = [Prompts(boxes=[[0, 0, 9, 9]])] * 3
    one, again = sam.predict(embeddings, prompts), sam.predict(embeddings, prompts)
    assert one == again and one[0].masks is not again[0].masks
    assert (one[0] == one[1]) is False and (one[0] != one[1]) is True
    for name in ("masks", "iou", "low_res"):
        other = getattr(one[0], name).clone()
        other[0, 0] = ~other[0, 0] if other.dtype == torch.bool else other[0, 0] + 1
        assert (one[0] == replace(one[0], **{name: other})) is False
    assert (one[0] == sam.predict(embeddings, prompts, multimask=False)[0]) is False
    assert one[0] != "masks" and embeddings != one
    assert embeddings == replace(embeddings, features=embeddings.features.clone())
    assert embeddings != replace(embeddings, fingerprint="another")
    assert embeddings != replace(embeddings, features=embeddings.features + 1)
    assert embeddings[:1] != embeddings
    assert prompts[0] == prompts[0] != Prompts(boxes=[[0, 0, 9, 9]])  # compared by identity
    for value in (one[0], embeddings):  # mutable contents
        with pytest.raises(TypeError, match="unhashable"):
            hash(value)


def test_a_repr_is_one_short_line(sam, photos, embeddings):
    prompts = Prompts(points=[[[5, 6]], [[1, 2], [3, 4]]], labels=[[1], [1, 0]])
    (masks,) = sam.predict(embeddings[:1], [prompts])
    (records,) = sam.segment(photos[:1], points_per_side=2, pred_iou_thresh=0)
    assert repr(sam) == "<SamFast tiny on cpu, recipe custom>"
    assert repr(RECIPES["fp32_sdpa"]) == "Recipe(attention='sdpa')"
    assert repr(masks) == (
        "Masks(masks=bool (2, 3, 60, 80), iou=float32 (2, 3), low_res=float32 (2, 3, 32, 32))"
    )
    assert repr(prompts) == "Prompts(points=[[[5, 6]], [[1, 2], [3, 4]]], labels=[[1], [1, 0]])"
    assert repr(Prompts(boxes=np.zeros((7, 4)))) == "Prompts(boxes=float64 (7, 4))"
    assert repr(Prompts(boxes=[[1, 2, 3, 4]] * 9)) == "Prompts(boxes=[9 values])"
    assert repr(embeddings).startswith("Embeddings(features=float32 (3, ")
    assert repr(load_image(photos[0])).startswith("LoadedImage(pixels=uint8 (60, 80, 3), name=")
    packed = pack([prompts], [(60, 80)], [(60, 80)], (32, 32))
    answers = sam.predict_batch(embeddings[:1], packed)
    batch = to_batch([load_image(photo) for photo in photos], SIDE)
    many = replace(embeddings, original_sizes=((1, 2),) * 99)
    for value in (embeddings, many, records, packed, answers, batch):
        assert len(repr(value)) < 250 and "\n" not in repr(value), repr(value)
        assert "tensor(" not in repr(value)


def test_ragged_clicks_answer_as_each_would_alone(sam, embeddings):
    """Padding is masked in every decoder attention; the original's -1 is a token and is not."""
    clicks = [[[5, 6]], [[10, 20], [30, 40], [50, 9]], [[1, 2], [3, 4]]]
    labels = [[1], [1, 0, 1], [1, -1]]
    result = sam.predict(embeddings[:1], [Prompts(points=clicks, labels=labels)])[0]
    assert result.masks.shape == (3, 3, 60, 80)
    for i in range(3):
        low, iou, masks = alone(sam, embeddings, 0, points=clicks[i], labels=labels[i])
        assert close(result.low_res[i], low)
        assert close(result.iou[i], iou)
        assert (result.masks[i] != masks).float().mean() < 1e-3


def test_padding_a_ragged_list_with_minus_one_changes_the_answer(sam, embeddings):
    plain = sam.predict(embeddings[:1], [Prompts(points=[[[5, 6]]], labels=[[1]])])[0]
    padded = sam.predict(embeddings[:1], [Prompts(points=[[[5, 6], [0, 0]]], labels=[[1, -1]])])[0]
    assert not torch.allclose(plain.low_res, padded.low_res, atol=1e-3)


def test_mixes_of_points_boxes_and_masks_answer_as_each_would_alone(sam, embeddings):
    mask = torch.randn(2, 1, *sam.model.prompt_encoder.mask_input_size)
    boxes = [[3, 4, 50, 50], [10, 0, 80, 60]]
    clicks, labels = [[], [[20, 30]]], [[], [0]]
    cases = [
        ({"boxes": boxes}, ("box",)),
        ({"boxes": boxes, "points": clicks, "labels": labels}, ("box", "points")),
        ({"masks": mask}, ("mask",)),
        ({"masks": mask, "points": clicks, "labels": labels}, ("mask", "points")),
        (
            {"masks": mask, "boxes": boxes, "points": clicks, "labels": labels},
            ("mask", "box", "points"),
        ),
    ]
    for given, kinds in cases:
        for multimask in (True, False):
            result = sam.predict(embeddings[:1], [Prompts(**given)], multimask=multimask)[0]
            assert result.masks.shape[:2] == (2, 3 if multimask else 1)
            for i in range(2):
                prompt: dict[str, Any] = {}
                if "box" in kinds:
                    prompt["box"] = boxes[i]
                if "mask" in kinds:
                    prompt["mask"] = mask[i : i + 1]
                if "points" in kinds and clicks[i]:
                    prompt |= {"points": clicks[i], "labels": labels[i]}
                low, iou, _ = alone(sam, embeddings, 0, multimask, **prompt)
                assert close(result.low_res[i], low), (kinds, i)
                assert close(result.iou[i], iou), (kinds, i)


def test_more_objects_than_the_decoder_takes_at_a_time(sam, embeddings):
    count = OBJECTS_PER_CALL["cpu"] + 3
    points = np.stack([np.linspace(0, 79, count), np.linspace(0, 59, count)], -1)[:, None]
    many = sam.predict(embeddings[:1], [Prompts(points=points, labels=np.ones((count, 1)))])[0]
    assert len(many) == count
    last = sam.predict(embeddings[:1], [Prompts(points=points[-1:], labels=[[1]])])[0]
    assert close(many.low_res[-1:], last.low_res)


def test_no_objects_at_all_are_an_empty_answer(sam, embeddings):
    result = sam.predict(embeddings[:1], [Prompts(boxes=np.zeros((0, 4)))])[0]
    assert result.masks.shape == (0, 3, 60, 80)
    assert result.masks.dtype == torch.bool


def test_low_res_is_the_next_mask_prompt(sam, embeddings):
    first = sam.predict(embeddings[:1], [Prompts(boxes=[[3, 4, 50, 50]])], multimask=False)[0]
    again = sam.predict(
        embeddings[:1], [Prompts(boxes=[[3, 4, 50, 50]], masks=first.low_res)], multimask=False
    )[0]
    assert again.masks.shape == first.masks.shape
    assert not torch.equal(again.low_res, first.low_res)


@pytest.fixture(scope="module", params=["nested", "packed"])
def at_once(sam, request):
    """The same model, all images at once."""
    return fast(sam.model, replace(sam.recipe, prompts=request.param), batch_size=2)


def assert_same_answers(got, wanted):
    assert len(got) == len(wanted)
    for each, other in zip(got, wanted, strict=True):
        assert each.masks.shape == other.masks.shape and each.masks.dtype == torch.bool
        if len(other):
            torch.testing.assert_close(each.low_res, other.low_res, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(each.iou, other.iou, rtol=1e-5, atol=1e-5)
            assert (each.masks != other.masks).float().mean() < 1e-3


def test_all_images_at_once_answer_as_image_by_image(sam, at_once, photos):
    """Images of four sizes, two of them several times and not side by side; every kind of prompt;
    none to many."""
    rng = np.random.default_rng(2)
    images = [photos[i] for i in (0, 2, 1, 0, 2, 0)] + [np.zeros((40, 40, 3), np.uint8)]
    embeddings = sam.embed(images)
    mask = torch.randn(2, 1, *sam.model.prompt_encoder.mask_input_size)
    clicks = rng.uniform(0, 60, (11, 1, 2))
    cases = [
        [Prompts(points=clicks[:n], labels=np.ones((n, 1))) for n in (1, 11, 0, 2, 1, 3, 0)],
        [
            Prompts(boxes=[[3, 4, 50, 50]] * 3),
            Prompts(points=[[[5, 6]], [[1, 2], [3, 4]]], labels=[[1], [1, 0]]),
            Prompts(masks=mask),
            Prompts(boxes=np.zeros((0, 4))),
            Prompts(points=clicks, labels=np.ones((11, 1))),
            Prompts(boxes=[[0, 0, 9, 9]], points=[[[4, 4]]], labels=[[1]]),
            Prompts(masks=mask[:1], boxes=[[3, 4, 30, 30]]),
        ],
    ]
    for prompts in cases:
        for multimask in (True, False):
            got = at_once.predict(embeddings, prompts, multimask=multimask)
            assert_same_answers(got, sam.predict(embeddings, prompts, multimask=multimask))


def image_threads():
    names = "samfast-image", "samfast-prefetch"
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("way", ["floats", "bytes"])
def test_many_batches_equal_each_image_alone(photos, tmp_path, monkeypatch, batch_size, way):
    """Loaded ahead, as floats or as the bytes that a GPU is given."""
    sam = fast(random_sam(), RECIPES["fp32"], batch_size=batch_size)
    Image.fromarray(photos[2]).save(tmp_path / "photo.png")
    many = [
        photos[0],
        tmp_path / "photo.png",
        Image.fromarray(photos[1]),
        torch.from_numpy(photos[0]).permute(2, 0, 1),
    ]
    many = many * 2 + [photos[1]]
    seen = []
    plain = sam.encode
    monkeypatch.setattr(sam, "encode", lambda pixels: seen.append(pixels) or plain(pixels))
    for photo in many:
        sam.embed([photo])
    alone = torch.cat(seen)
    seen.clear()
    if way == "bytes":
        monkeypatch.setattr(Batcher, "batch", Batcher.raw_batch)
    embeddings = sam.embed(many)
    assert [len(pixels) for pixels in seen] == [
        min(batch_size, 9 - i) for i in range(0, 9, batch_size)
    ]
    assert torch.equal(torch.cat(seen), alone)
    assert embeddings.original_sizes == tuple(
        [(60, 80), (200, 90), (128, 128), (60, 80)] * 2 + [(128, 128)]
    )
    assert embeddings.features.shape[0] == 9
    assert not image_threads()


def test_the_next_batch_is_loaded_while_one_is_encoded(photos, monkeypatch):
    sam = fast(random_sam(), RECIPES["fp32"], batch_size=2)
    loaded = threading.Semaphore(0)
    encoded: list[int] = []
    plain = sam.encode

    def noted(*args):
        loaded.release()
        return load_image(*args)

    def encode(pixels):
        if not encoded:
            assert all(loaded.acquire(timeout=20) for _ in range(4))  # its own two and the next two
        encoded.append(len(pixels))
        return plain(pixels)

    monkeypatch.setattr(batch_loading, "load_image", noted)
    monkeypatch.setattr(sam, "encode", encode)
    sam.embed([photos[0]] * 6)
    assert encoded == [2, 2, 2]


def test_the_caller_s_streams_are_read_on_its_thread(sam, photos, monkeypatch):
    seen = []
    plain = batch_loading.thread_loader
    monkeypatch.setattr(
        batch_loading, "thread_loader", lambda: seen.append(threading.current_thread()) or plain()
    )
    sam.embed(photos)
    assert seen == [threading.current_thread()]


@pytest.mark.parametrize("bad", [0, 1, 4, 5, 6])
def test_a_bad_image_is_reported_before_its_batch_is_encoded(photos, monkeypatch, bad):
    sam = fast(random_sam(), RECIPES["fp32"], batch_size=2)
    encoded: list[int] = []
    plain = sam.encode
    monkeypatch.setattr(sam, "encode", lambda pixels: encoded.append(len(pixels)) or plain(pixels))
    many: list[Any] = [photos[0]] * 7
    many[bad] = np.zeros((4, 4, 3))
    with pytest.raises(ImageError, match=f"image {bad}: dtype float64"):
        sam.embed(many)
    assert encoded == [2] * (bad // 2)
    assert not image_threads()


def test_an_error_of_the_encoder_ends_the_threads(photos, monkeypatch):
    sam = fast(random_sam(), RECIPES["fp32"], batch_size=1)

    def fail(pixels):
        raise RuntimeError("broken")

    monkeypatch.setattr(sam, "encode", fail)
    with pytest.raises(RuntimeError, match="broken"):
        sam.embed(photos)
    assert not image_threads()


def test_masks_of_images_of_one_size_are_made_at_once(at_once, photos, monkeypatch):
    calls = []
    plain = postprocess.masks
    monkeypatch.setattr(
        postprocess, "masks", lambda *args: calls.append(args[1].original_size) or plain(*args)
    )
    embeddings = at_once.embed([photos[0], photos[1], photos[0], photos[1]])
    results = at_once.predict(embeddings, [Prompts(boxes=[[3, 4, 50, 50]])] * 4)
    assert sorted(calls) == [(60, 80), (128, 128)]
    assert (
        results[0].masks.untyped_storage().data_ptr()
        == results[2].masks.untyped_storage().data_ptr()
    )


class Gpu:
    """Does work on at most so many at once, from a given call on; counted by the length of its
    first argument."""

    def __init__(self, work, most, first=0):
        self.work, self.most, self.first = work, most, first
        self.calls: list[int] = []

    def __call__(self, given, *others):
        self.calls.append(len(given))
        if len(given) > self.most and len(self.calls) > self.first:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.work(given, *others)


def test_out_of_memory_encodes_half_as_many_images(photos, monkeypatch, caplog):
    model = random_sam()
    sam = fast(model, RECIPES["fp32"], batch_size=4)
    many = [*photos, *photos, photos[0]]
    wanted = sam.embed(many)
    gpu = Gpu(sam.encode, 2, first=1)
    monkeypatch.setattr(sam, "encode", gpu)
    got = sam.embed(many)
    assert gpu.calls == [4, 3, 2, 1]
    assert got.original_sizes == wanted.original_sizes and got.input_sizes == wanted.input_sizes
    assert close(got.features, wanted.features)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "samfast"]
    assert "3 at a time" in line and "lower batch_size" in line
    gpu = Gpu(gpu.work, 1)
    monkeypatch.setattr(sam, "encode", gpu)
    with pytest.raises(DeviceMemoryError, match="half the size too: lower batch_size"):
        sam.embed(many)
    assert gpu.calls == [4, 2]


@pytest.mark.parametrize("most", [9, 5])
def test_out_of_memory_makes_the_masks_of_half_as_many_objects(
    at_once, photos, monkeypatch, caplog, most
):
    sam, images = at_once, [photos[0], photos[1], photos[0], photos[2], photos[0]]
    counts = (3, 1, 0, 2, 4)
    asked = [Prompts(boxes=[[0, 0, 20 + i, 30] for i in range(n)]) for n in counts]
    asked[2] = Prompts(boxes=np.zeros((0, 4)))
    embeddings = sam.embed(images)
    wanted = sam.predict(embeddings, asked)
    gpu = Gpu(postprocess.masks_of_images, most)
    monkeypatch.setattr(postprocess, "masks_of_images", gpu)
    got = sam.predict(embeddings, asked)
    assert gpu.calls == [10, 5, 5]
    for each, other in zip(got, wanted, strict=True):
        assert torch.equal(each.masks, other.masks) and torch.equal(each.low_res, other.low_res)
    assert [len(each) for each in got] == list(counts)
    assert "10 at a time" in caplog.text and "ask for fewer objects" in caplog.text
    gpu.most = 4
    with pytest.raises(DeviceMemoryError, match="ask for fewer objects or images"):
        sam.predict(embeddings, asked)


def test_out_of_memory_decodes_half_as_many_objects(at_once, photos, monkeypatch):
    monkeypatch.setitem(OBJECTS_PER_CALL, "cpu", 8)
    sam, embeddings = at_once, at_once.embed(photos)
    asked = [Prompts(boxes=[[0, 0, 20 + i, 30] for i in range(n)]) for n in (7, 1, 5)]
    sizes = embeddings.original_sizes, embeddings.input_sizes
    packed = pack(asked, *sizes, sam.model.prompt_encoder.mask_input_size)
    wanted, flat = sam.predict(embeddings, asked), sam.predict_batch(embeddings, packed)
    embed = sam.model.prompt_encoder.forward
    gpu = Gpu(lambda boxes: embed(points=None, boxes=boxes, masks=None), 4)
    monkeypatch.setattr(
        sam.model.prompt_encoder, "forward", lambda points, boxes, masks: gpu(boxes)
    )
    for each, other in zip(sam.predict(embeddings, asked), wanted, strict=True):
        assert close(each.low_res, other.low_res) and close(each.iou, other.iou)
    again = sam.predict_batch(embeddings, packed)
    assert close(again.low_res.values(), flat.low_res.values())
    assert gpu.calls == 2 * [8, 4, 4, 4, 1]
    gpu.most = 3
    for call in (
        lambda: sam.predict(embeddings, asked),
        lambda: sam.predict_batch(embeddings, packed),
    ):
        with pytest.raises(DeviceMemoryError, match="ask for fewer objects or images"):
            call()


def jagged(parts):
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


def test_nested_clicks_are_answered_as_nested_tensors(sam, at_once, embeddings):
    clicks = [torch.rand(n, 2, 2) * 60 for n in (2, 0, 5)]
    labels = [torch.randint(0, 2, (n, 2)) for n in (2, 0, 5)]
    wanted = sam.predict(embeddings, [Prompts(*each) for each in zip(clicks, labels, strict=True)])
    coords = jagged(clicks)
    kinds = torch.nested.nested_tensor_from_jagged(torch.cat(labels), coords.offsets())
    for engine in (sam, at_once):
        answer = engine.predict_batch(embeddings, coords, kinds)
        assert answer.low_res.shape[0] == answer.iou.shape[0] == len(answer) == 3
        assert (
            answer.low_res.offsets() is coords.offsets()
            and answer.iou.offsets() is coords.offsets()
        )
        assert answer.iou.shape[1] == coords.shape[1]  # the same ragged dimension
        low_res, iou = answer.low_res.unbind(), answer.iou.unbind()
        assert (
            low_res[0].untyped_storage().data_ptr()
            == answer.low_res.values().untyped_storage().data_ptr()
        )
        for i, each in enumerate(wanted):
            assert low_res[i].shape == each.low_res.shape
            torch.testing.assert_close(low_res[i], each.low_res, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(iou[i], each.iou, rtol=1e-5, atol=1e-5)
        assert torch.equal(answer.cpu().iou.values(), answer.iou.values())


def test_packed_prompts_are_answered_as_nested_tensors(sam, at_once, embeddings):
    prompts = [Prompts(boxes=[[3, 4, 50, 50]] * n) for n in (2, 0, 1)]
    batch = pack(prompts, embeddings.original_sizes, embeddings.input_sizes, (SIDE // 4, SIDE // 4))
    answer = at_once.predict_batch(embeddings, batch, multimask=False)
    wanted = sam.predict(embeddings, prompts, multimask=False)
    assert answer.iou.offsets().tolist() == [0, 2, 2, 3]
    torch.testing.assert_close(
        answer.low_res.values(), torch.cat([each.low_res for each in wanted]), rtol=1e-5, atol=1e-5
    )


def test_the_modes_that_the_caller_is_in_change_nothing(sam, at_once, photos):
    box = [Prompts(boxes=[[0, 0, 9, 9]])] * 2
    for engine in (sam, at_once):
        wanted = engine.predict(engine.embed(photos[:2]), box)[1].low_res
        with torch.inference_mode():
            embeddings = engine.embed(photos[:2])
            coords = jagged([torch.full((n, 1, 2), 9.0) for n in (3, 1)])
            labels = torch.nested.nested_tensor_from_jagged(torch.ones(4, 1), coords.offsets())
            answer = engine.predict_batch(embeddings, coords, labels)
            assert torch.equal(engine.predict(embeddings, box)[1].low_res, wanted)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(engine.predict(embeddings, box)[1].low_res, wanted)
        assert len(answer.cpu().iou.values()) == 4  # outside of inference mode too


def test_wrong_nested_prompts_say_what_to_do(at_once, embeddings):
    coords, labels = jagged([torch.ones(2, 1, 2)] * 3), jagged([torch.ones(2, 1)] * 3)
    other = jagged([torch.ones(n, 1) for n in (1, 3, 2)])
    outside, wrong = coords * torch.tensor([500.0, 1.0]), labels + 4
    for match, args in {
        "a torch.strided tensor instead of": (torch.ones(3, 2, 1, 2), torch.ones(3, 2, 1)),
        "list instead of": ([], []),
        "points without labels": (coords, None),
        "points for 2 images but embeddings of 3": (jagged([torch.ones(2, 1, 2)] * 2), labels),
        r"points of shape \(3, .*\) instead of \(B, n, K, 2\)": (
            jagged([torch.ones(2, 1, 3)] * 3),
            labels,
        ),
        "labels for 6 x 2 points": (coords, jagged([torch.ones(2, 2)] * 3)),
        "image 0, object 0 .*different numbers of objects": (coords, other),
        "image 0, object 0 .*lies outside": (outside, labels),
        "image 0, object 0 .*a label is none": (coords, wrong),
    }.items():
        with pytest.raises(PromptError, match=match):
            at_once.predict_batch(embeddings, *args)
    batch = pack(
        [Prompts(boxes=[[0, 0, 9, 9]])],
        [(60, 80)],
        [embeddings.input_sizes[0]],
        (SIDE // 4, SIDE // 4),
    )
    with pytest.raises(PromptError, match="prompts for 1 images but embeddings of 3"):
        at_once.predict_batch(embeddings, batch)
    with pytest.raises(PromptError, match="labels beside a PromptBatch"):
        at_once.predict_batch(embeddings[:1], batch, labels)
    with pytest.raises(EmbeddingsError, match="Tensor instead of"):
        at_once.predict_batch(embeddings.features, batch)


@pytest.mark.parametrize("prompts", ["looped", "nested", "packed"])
def test_a_non_finite_answer_is_reported_at_once_on_a_cpu(sam, embeddings, prompts):
    loaded = fast(sam.model, replace(sam.recipe, prompts=prompts))
    features = embeddings.features.clone()
    features[1, 0, 0, 0] = float("nan")
    broken = replace(embeddings, features=features)
    asked = [Prompts(boxes=[[0, 0, 9, 9]] * 2)] * 3
    with pytest.raises(
        NumericsError, match=r"image 1, object 0 \(and 1 objects more\): the answer holds NaN"
    ):
        loaded.predict(broken, asked)
    assert len(loaded.predict(broken[2:], asked[2:])[0]) == 2
    batch = pack(
        [Prompts(boxes=[[0, 0, 9, 9]])] * 3,
        embeddings.original_sizes,
        embeddings.input_sizes,
        (SIDE // 4, SIDE // 4),
    )
    with pytest.raises(NumericsError, match="image 1, object 0: the answer"):
        loaded.predict_batch(broken, batch)


def test_a_non_finite_embedding_names_its_image(photos, monkeypatch):
    sam = fast(random_sam(), RECIPES["fp32_sdpa"], batch_size=2)
    plain = sam.encode

    def encode(pixels):
        features = plain(pixels)
        features[-1, 3, 2, 1] = float("inf")
        return features

    monkeypatch.setattr(sam, "encode", encode)
    with pytest.raises(NumericsError, match=r"image 1 \(and 1 images more\): its embedding holds"):
        sam.embed(photos)


def test_a_non_finite_embedding_is_never_saved_nor_copied_to_the_host(embeddings, tmp_path):
    features = embeddings.features.clone()
    features[2, 0, 0, 0] = float("nan")
    broken = replace(embeddings, features=features)
    with pytest.raises(NumericsError, match="image 2: its embedding holds NaN"):
        samfast.save_embeddings(broken, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_results_survive_later_calls(sam, photos):
    a = sam.embed(photos[:1])
    kept = a.features.clone()
    answer = sam.predict(a, [Prompts(boxes=[[0, 0, 9, 9]])])[0].low_res
    before = answer.clone()
    sam.predict(sam.embed(photos[1:]), [Prompts(boxes=[[0, 0, 9, 9]])] * 2)
    assert torch.equal(a.features, kept)
    assert torch.equal(answer, before)


def test_best_is_the_mask_of_highest_predicted_iou(sam, embeddings):
    result = sam.predict(
        embeddings[:1], [Prompts(points=[[[5, 5]], [[30, 30]]], labels=[[1], [1]])]
    )[0]
    for i in range(2):
        assert torch.equal(result.best()[i], result.masks[i, int(result.iou[i].argmax())])


def test_embeddings_are_saved_and_loaded_bit_for_bit(sam, embeddings, tmp_path):
    file = tmp_path / "photos.safetensors"
    samfast.save_embeddings(embeddings, file)
    back = samfast.load_embeddings(file)
    assert torch.equal(back.features, embeddings.features)
    assert back.original_sizes == embeddings.original_sizes
    prompts = [Prompts(boxes=[[0, 0, 9, 9]])] * 3
    for a, b in zip(sam.predict(back, prompts), sam.predict(embeddings, prompts), strict=True):
        assert torch.equal(a.low_res, b.low_res)


def test_embeddings_of_another_model_or_preprocessing_are_refused(sam, embeddings):
    other = fast(random_sam(seed=5), RECIPES["fp32"])
    with pytest.raises(EmbeddingsError, match="another model or preprocessing"):
        other.predict(embeddings, [Prompts(boxes=[[0, 0, 9, 9]])] * 3)
    with pytest.raises(EmbeddingsError, match="Tensor instead of"):
        sam.predict(embeddings.features, [Prompts(boxes=[[0, 0, 9, 9]])] * 3)


def test_embeddings_do_not_go_to_a_device_that_is_not_there(embeddings):
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(
        EmbeddingsError, match=rf"^embeddings\.to\('{absent}'\): .+; give a device$"
    ):
        embeddings.to(absent)


def test_the_fingerprint_is_of_the_weights_not_of_the_recipe():
    model = random_sam()
    rounded = copy.deepcopy(model)
    plain = fast(model, RECIPES["fp32"])
    half = fast(rounded, RECIPES["bf16_sdpa"])
    assert plain.fingerprint == half.fingerprint
    before = plain.fingerprint
    with torch.no_grad():
        plain.model.image_encoder.neck[0].weight.add_(0.1)
    changed = plain.fingerprint
    assert changed != before
    plain.model.image_encoder = half.model.image_encoder
    assert plain.fingerprint == before != changed


@pytest.mark.parametrize("content", [b"", b"not a tensor file", None])
def test_a_damaged_embeddings_file_is_named(tmp_path, content, sam, embeddings):
    file = tmp_path / "x.safetensors"
    if content is None:
        samfast.save_embeddings(embeddings, file)
        content = file.read_bytes()[:-100]
    file.write_bytes(content)
    with pytest.raises(EmbeddingsError, match=re.escape(str(file))):
        samfast.load_embeddings(file)


def test_a_missing_or_foreign_embeddings_file_is_named(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(EmbeddingsError, match="no such file"):
        samfast.load_embeddings(tmp_path / "none")
    save_file({"features": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(EmbeddingsError, match="not embeddings of samfast"):
        samfast.load_embeddings(tmp_path / "other.safetensors")


def test_wrong_calls_say_what_to_do(sam, photos, embeddings):
    with pytest.raises(InputError, match=re.escape("wrap it: [image]")):
        sam.embed(photos[0])
    with pytest.raises(InputError, match="empty list"):
        sam.embed([])
    with pytest.raises(ImageError, match="image 1"):
        sam.embed([photos[0], np.zeros((4, 4), float)])
    with pytest.raises(PromptError, match="prompts for 1 images but embeddings of 3"):
        sam.predict(embeddings, [Prompts(boxes=[[0, 0, 9, 9]])])
    with pytest.raises(PromptError, match="image 2, object 0"):
        sam.predict(
            embeddings, [Prompts(boxes=[[0, 0, 9, 9]])] * 2 + [Prompts(boxes=[[9, 9, 0, 0]])]
        )
    with pytest.raises(PromptError, match=re.escape("wrap it: [prompts]")):
        sam.predict(embeddings[:1], Prompts(boxes=[[0, 0, 9, 9]]))
    with pytest.raises(PromptError, match="prompts for 1 images but a list of 3; give one each"):
        sam.predict(photos, [Prompts(boxes=[[0, 0, 9, 9]])])
    with pytest.raises(InputError, match=re.escape("wrap it: [image]")):
        sam.predict("photo.jpg", [Prompts(boxes=[[0, 0, 9, 9]])])
    with pytest.raises(InputError, match=r"row; did you mean points_per_side\? There are points_"):
        sam.segment([photos[0]], points_per_row=3)
    with pytest.raises(InputError, match=r"no option zzz; there are points_per_side, .*max_memory"):
        sam.segment([photos[0]], zzz=3)
    with pytest.raises(InputError, match="progress='yes'; True for a bar"):
        sam.embed(photos, progress="yes")


def test_load_refuses_unknown_arguments():
    with pytest.raises(InputError, match="unknown model 'vit_z'; there are vit_xs"):
        samfast.load("vit_z")
    with pytest.raises(RecipeError, match="unknown recipe 'warp'"):
        samfast.load("vit_xs", checkpoint="random", recipe="warp")
    with pytest.raises(InputError, match="device 'tpu9'"):
        samfast.load("vit_xs", checkpoint="random", device="tpu9")
    with pytest.raises(InputError, match="batch_size=0"):
        samfast.load("vit_xs", checkpoint="random", batch_size=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_refused_with_the_remedy():
    with pytest.raises(RecipeError, match="use the device cpu"):
        samfast.load("vit_xs", checkpoint="random", device="cuda")


def test_describe_says_what_runs_and_why(sam):
    loaded = samfast.load("vit_xs", checkpoint="random", device="cpu")
    text = loaded.describe()
    for word in (
        "vit_xs",
        "random weights",
        "cpu",
        loaded.recipe_name,
        "auto:",
        "decoder   fused",
    ):
        assert word in text
    assert "given" in sam.describe()


def test_random_weights_are_the_same_for_a_seed_and_have_positions():
    a, b = random_weights(TINY), random_weights(TINY)
    assert all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
    assert float(a.image_encoder.blocks[0].attn.rel_pos_h.detach().abs().max()) > 0


def test_segment_is_the_original_generator(sam, photos):
    """The engine's way to the same records as the drop-in's, at 9 points and without thresholds."""
    options = {"points_per_side": 3, "pred_iou_thresh": -9.0, "stability_score_thresh": 0.0}
    records = sam.segment(photos[:2], **options)
    generator = samfast.SamAutomaticMaskGenerator(sam.model, output_mode="coco_rle", **options)
    # With a hook the generator calls the model's modules, as this recipe does.
    with sam.model.mask_decoder.register_forward_hook(lambda *call: None):
        expected = [generator.generate(photo) for photo in photos[:2]]
    assert [len(each) for each in records] == [len(each) for each in expected]
    assert records[0] == expected[0]
    assert records[0][0]["segmentation"]["size"] == [60, 80]


def test_segment_upscales_only_what_may_pass(sam, photos, monkeypatch):
    """With the same records as the drop-in, which asks for all."""
    options: dict[str, Any] = {
        "points_per_side": 3,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
    }
    scores = [
        each["predicted_iou"]
        for each in sam.segment(photos[:1], pred_iou_thresh=-9.0, **options)[0]
    ]
    options["pred_iou_thresh"] = threshold = (sorted(scores)[-1] + sorted(scores)[-2]) / 2
    masks, upscaled = sam.model.mask_decoder.mask_logits, []
    assert threshold > 0

    def counted(tokens, image):
        upscaled.append(len(tokens))
        return masks(tokens, image)

    monkeypatch.setattr(sam.model.mask_decoder, "mask_logits", counted)
    (records,) = sam.segment(photos[:1], **options)
    assert sum(upscaled) == 1
    generator = samfast.SamAutomaticMaskGenerator(sam.model, output_mode="coco_rle", **options)
    assert records == generator.generate(photos[0]) and len(records) == 1
    assert sum(upscaled) == 1 + 9


def test_a_checkpoint_runs_at_its_own_or_another_image_size(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "small.safetensors"
    small = samfast.load("vit_xs", checkpoint="random", device="cpu", image_size=256)
    save_file({k: v.contiguous() for k, v in small.model.state_dict().items()}, file)
    loaded = samfast.load(None, checkpoint=file, device="cpu")
    assert (loaded.name, loaded.image_size) == ("vit_xs", 256)
    photo = np.full((100, 200, 3), 90, np.uint8)
    assert torch.equal(loaded.embed([photo]).features, small.embed([photo]).features)
    larger = samfast.load(None, checkpoint=file, device="cpu", image_size=320)
    embeddings = larger.embed([photo])
    assert embeddings.features.shape[-1] == 20
    assert larger.predict(embeddings, [Prompts(boxes=[[0, 0, 50, 50]])])[0].masks.shape == (
        1,
        3,
        100,
        200,
    )
    assert "resized" in larger.describe()
    with pytest.raises(EmbeddingsError):
        larger.predict(loaded.embed([photo]), [Prompts(boxes=[[0, 0, 50, 50]])])
    with pytest.raises(InputError, match="multiple of 16"):
        samfast.load(None, checkpoint=file, image_size=100)


def test_info_logging_says_what_was_loaded_and_nothing_is_printed(caplog, capfd):
    samfast.load("vit_xs", device="cpu", recipe="fp32", image_size=64)
    assert capfd.readouterr() == ("", "")
    with caplog.at_level("INFO", logger="samfast"):
        samfast.load("vit_xs", device="cpu", recipe="fp32", image_size=64)
    (line,) = (record.getMessage() for record in caplog.records)
    for word in ("vit_xs from ", ".safetensors", "on cpu", "recipe fp32", "asked for"):
        assert word in line
