"""`SamFast.predict_each`: the answers of `predict`, one image after another."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samfast import outputs
from samfast.engine import SamFast
from samfast.errors import (
    DeviceMemoryError,
    ImageError,
    InputError,
    NumericsError,
    PromptError,
)
from samfast.prompted_masks import answer_stream
from samfast.recipes import RECIPES, Recipe
from samfast.types import Masks, Prompts
from tests.model.tiny import fast as applied_sam
from tests.model.tiny import random_sam

ROOT = Path(__file__).resolve().parents[2]


def fast(recipe: Recipe = RECIPES["fp32_sdpa"], batch_size: int = 3) -> SamFast:
    return applied_sam(random_sam(), recipe, batch_size=batch_size)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = [(60, 80), (128, 128), (200, 90), (60, 80), (33, 47), (60, 80), (60, 80)]
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture
def asked(photos: list[np.ndarray]) -> list[Prompts]:
    """Prompts of several kinds and numbers, one of no object."""
    return [
        Prompts(points=[[[10, 10]], [[30, 20]]], labels=[[1], [1]]),
        Prompts(boxes=[[1, 2, 30, 40]]),
        Prompts(points=[[[5, 5], [20, 20]], [[8, 9]]], labels=[[1, 0], [1]]),
        Prompts(boxes=np.zeros((0, 4))),
        Prompts(points=[[[10, 10]]], labels=[[1]], boxes=[[1, 2, 30, 30]]),
        Prompts(boxes=[[1, 2, 30, 40], [4, 4, 20, 20]]),
        Prompts(points=[[[10, 10]]], labels=[[1]]),
    ]


def deferring(monkeypatch: pytest.MonkeyPatch, deferred: bool) -> None:
    """Let jobs wait until the next batch is queued, as on a GPU."""
    monkeypatch.setattr(answer_stream, "_deferred", lambda device: deferred)


def by_batches(sam: SamFast, images: Any, prompts: Any, **options: Any) -> list[Masks]:
    """The answers of `predict` for the batches that the stream takes."""
    step = sam.batch_size
    return [
        masks
        for start in range(0, len(images), step)
        for masks in sam.predict(
            images[start : start + step], prompts[start : start + step], **options
        )
    ]


def same(got: list[Masks], want: list[Masks]) -> bool:
    return len(got) == len(want) and all(a == b for a, b in zip(got, want, strict=True))


def threads() -> list[str]:
    return [
        t.name
        for t in threading.enumerate()
        if t.name.startswith(("samfast-image", "samfast-prefetch"))
    ]


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("fp32", "looped"),
        ("fp32_sdpa", "looped"),
        ("fp32_folded", "packed"),
        ("fp32_blocked", "nested"),
        ("bf16_blocked", "packed"),
        ("fp32_fused", "packed"),
    ],
)
def test_answers_are_those_of_predict_bit_for_bit(
    photos, asked, name, prompts, multimask, deferred, monkeypatch
):
    deferring(monkeypatch, deferred)
    for batch_size in (1, 3):
        sam = fast(replace(RECIPES[name], prompts=prompts), batch_size)
        want = by_batches(sam, photos, asked, multimask=multimask)
        assert sum(len(masks) for masks in want) == 9
        assert same([*sam.predict_each(photos, asked, multimask=multimask)], want)
        answers = sam.predict_each(iter(photos), iter(asked), multimask=multimask)
        assert same([*answers], want)
    assert not threads()


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("multimask", [False, True])
def test_records_hold_the_masks_of_predict(photos, asked, multimask, deferred, monkeypatch):
    deferring(monkeypatch, deferred)
    sam = fast()
    want = by_batches(sam, photos, asked, multimask=multimask)
    each = 3 if multimask else 1
    answers = [*sam.predict_each(photos, asked, multimask=multimask, output_mode="coco_rle")]
    for records, masks, prompts in zip(answers, want, asked, strict=True):
        points = None if prompts.points is None else prompts.points
        stability = np.array([r["stability_score"] for r in records]).reshape(len(masks), each)
        assert ((stability >= 0) & (stability <= 1)).all()
        assert records == outputs.records_of(masks, stability, points, best=False)


def test_stability_is_that_of_the_original(photos):
    sam, prompts = fast(), Prompts(boxes=[[1, 2, 30, 40], [5, 5, 50, 50]])
    (records,) = sam.predict_each(photos[:1], [prompts], output_mode="coco_rle")
    (masks,) = sam.predict(photos[:1], [prompts])
    logits = sam.model.postprocess_masks(masks.low_res, (96, 128), (60, 80))
    inner, outer = ((logits > t).sum((2, 3)).flatten() for t in (1.0, -1.0))
    want = (inner / outer.clamp(min=1)).tolist()
    assert [record["stability_score"] for record in records] == pytest.approx(want, abs=1e-6)


def test_files_arrays_pictures_and_tensors_are_answered_alike(photos, tmp_path):
    photo, box = photos[0], Prompts(boxes=[[1, 2, 30, 40]])
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    tensor = torch.from_numpy(photo.transpose(2, 0, 1).copy())
    forms = [path, str(path), photo, Image.fromarray(photo), tensor]
    answers = [*fast().predict_each(iter(forms), itertools.repeat(box))]
    assert len(answers) == 5 and all(each == answers[0] for each in answers)


def test_an_error_comes_after_the_answers_before_it_and_names_its_image(photos, asked, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    sam = fast()
    want = by_batches(sam, photos[:4], asked[:4])
    got: list[Masks] = []
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        got.extend(sam.predict_each([*photos[:4], broken, *photos[5:]], asked))
    assert len(got) == 4 and same(got[:3], want[:3])
    got.clear()
    wrong = [*asked[:4], Prompts(boxes=[[500, 500, 600, 600]]), *asked[5:]]
    with pytest.raises(PromptError, match=r"^image 4, object 0"):
        got.extend(sam.predict_each(photos, wrong))
    assert len(got) == 4
    assert not threads()


def test_logits_of_nan_name_the_image(photos, asked, monkeypatch):
    sam = fast()
    encode, calls = sam.encode, itertools.count()

    def spoilt(pixels):
        features = encode(pixels)
        if next(calls) == 1:  # images 3 to 5
            features[1] = float("nan")
        return features

    monkeypatch.setattr(sam, "encode", spoilt)
    boxes = itertools.repeat(Prompts(boxes=[[1, 2, 30, 30]]))
    got: list[Masks] = []
    with pytest.raises(NumericsError, match=r"^image 4, object 0"):
        got.extend(sam.predict_each(iter(photos), boxes))
    assert len(got) == 4


def test_too_few_prompts_are_an_error_after_the_answers(photos, asked):
    sam = fast()
    got: list[Masks] = []
    with pytest.raises(PromptError, match="prompts for 2 images but there are more"):
        got.extend(sam.predict_each(iter(photos), iter(asked[:2])))
    assert len(got) == 2
    with pytest.raises(PromptError, match="prompts for 2 images"):
        next(sam.predict_each(photos, asked[:2]))


def test_wrong_arguments_are_named(photos, asked):
    sam = fast()
    with pytest.raises(InputError, match="wrap it"):
        next(sam.predict_each("photo.jpg", asked))  # type: ignore[call-overload]
    with pytest.raises(InputError, match="binary_mask, coco_rle"):
        next(sam.predict_each(photos, asked, output_mode="png"))  # type: ignore[call-overload]
    with pytest.raises(PromptError, match="one Prompts instead"):
        next(sam.predict_each(iter(photos), asked[0]))  # type: ignore[call-overload]
    wrong: Any = iter([asked[0], "box"])
    with pytest.raises(PromptError, match="image 1"):
        list(sam.predict_each(iter(photos[:2]), wrong))


def test_an_error_of_the_caller_comes_after_the_answers_before_it(photos, asked):
    def images():
        yield from photos[:4]
        raise OSError("the camera is gone")

    got: list[Masks] = []
    with pytest.raises(OSError, match="the camera is gone"):
        got.extend(fast().predict_each(images(), iter(asked)))
    assert len(got) == 4 and not threads()


def test_after_an_error_the_caller_goes_on_with_the_same_iterator(photos):
    box = itertools.repeat(Prompts(boxes=[[1, 2, 30, 30]]))
    many = iter([photos[0], np.zeros((4, 4), np.float32), *[photos[0]] * 30])
    sam = fast(batch_size=1)
    with pytest.raises(ImageError, match="image 1"):
        list(sam.predict_each(many, box))
    assert len([*sam.predict_each(many, box)]) >= 27  # a few had been read ahead


def test_images_are_taken_a_bounded_number_ahead(photos):
    taken = 0

    def images():
        nonlocal taken
        for photo in itertools.repeat(photos[0]):
            taken += 1
            yield photo

    box = itertools.repeat(Prompts(boxes=[[1, 2, 30, 30]]))
    answers = fast(batch_size=2).predict_each(images(), box)
    for done, _ in zip(range(1, 21), answers, strict=False):
        assert taken <= done + 2 * 4
    answers.close()
    assert not threads()


@pytest.mark.parametrize("deferred", [False, True])
def test_answers_are_let_go_when_the_caller_has_them(photos, deferred, monkeypatch):
    deferring(monkeypatch, deferred)
    box = itertools.repeat(Prompts(boxes=[[1, 2, 30, 30]]))
    answers = fast(batch_size=2).predict_each(itertools.repeat(photos[0]), box)
    kept = [weakref.ref(next(answers)) for _ in range(12)]
    gc.collect()
    assert not any(ref() is not None for ref in kept[:-1])  # the generator stands at the last
    answers.close()


def test_closing_does_not_wait_for_an_iterator_that_blocks(photos):
    waiting, release = threading.Event(), threading.Event()

    def images():
        yield photos[0]
        waiting.set()
        release.wait(60)

    answers = fast(batch_size=1).predict_each(
        images(), itertools.repeat(Prompts(boxes=[[1, 2, 30, 30]]))
    )
    next(answers)
    assert waiting.wait(30)
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 5
    release.set()


def test_what_does_not_fit_together_is_tried_image_by_image(photos, asked, monkeypatch):
    sam = fast()
    encode, decode = sam.encode, sam.decode

    def encode_one(pixels):
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("too many")
        return encode(pixels)

    def decode_some(features, packed, **options):
        if len(features) > 1 or features.shape[0] != 1:
            raise torch.OutOfMemoryError("too many")
        return decode(features, packed, **options)

    want = [sam.predict([photo], [each])[0] for photo, each in zip(photos, asked, strict=True)]
    monkeypatch.setattr(sam, "encode", encode_one)
    monkeypatch.setattr(sam, "decode", decode_some)
    assert same([*sam.predict_each(photos, asked)], want)

    def refuse(*args, **options):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(sam, "decode", refuse)
    with pytest.raises(DeviceMemoryError, match="ask for fewer objects"):
        next(sam.predict_each(photos, asked))
    monkeypatch.setattr(sam, "encode", refuse)
    with pytest.raises(DeviceMemoryError, match="lower batch_size"):
        next(sam.predict_each(photos, asked))


def test_progress_counts_images(photos, asked):
    calls: list[tuple[int, int | None]] = []
    list(fast().predict_each(photos, asked, progress=lambda *done: calls.append(done)))
    assert calls == [(n, 7) for n in range(1, 8)]
    calls.clear()
    list(fast().predict_each(iter(photos), asked, progress=lambda *done: calls.append(done)))
    assert calls[-1] == (7, None)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_a_stream_that_waits_for_its_images():
    program = """
import sys, time, itertools, threading
import numpy as np
from samfast.types import Prompts
from samfast.recipes import RECIPES
from tests.model.tiny import fast, random_sam
def images():
    yield np.zeros((40, 40, 3), np.uint8)
    yield np.zeros((40, 40, 3), np.uint8)
    print("waiting", flush=True)
    time.sleep(600)
sam = fast(random_sam(), RECIPES["fp32_sdpa"])
try:
    for masks in sam.predict_each(images(), itertools.repeat(Prompts(boxes=[[1, 1, 9, 9]]))):
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert process.wait(30) == 0
    process.stdout.close()
