"""`SamFast.segment` on many images: each one's records are those it has alone, and a bad one spares
those before."""

from __future__ import annotations

import copy
import gc
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from samfast.automatic_masks import generate, segmenter
from samfast.automatic_masks.segmenter import Segmenter
from samfast.engine import SamFast
from samfast.errors import ImageError, InputError, NumericsError
from samfast.images import LoadedImage, batch_loading
from samfast.images.batch_loading import load_numbered, thread_loader
from samfast.provenance import Provenance
from samfast.recipes import RECIPES, Recipe, apply
from tests.automatic_masks.point_models import change_plans
from tests.model.tiny import random_sam

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {
    "points_per_side": 3,
    "pred_iou_thresh": -9.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 0.97,
    "crop_nms_thresh": 0.97,
}


def fast(recipe: Recipe = RECIPES["fp32_sdpa"], batch_size: int = 3, model: Any = None) -> SamFast:
    sam = model or random_sam()
    runtime = apply(sam, recipe, CPU, batch_size=batch_size)
    return SamFast(sam, runtime, Provenance("tiny"))


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = [(60, 80), (128, 128), (200, 90), (60, 80), (33, 47)]
    coarse = [rng.integers(0, 255, (5, 6, 3), dtype=np.uint8) for _ in sizes]
    return [
        np.ascontiguousarray(np.resize(np.repeat(c, 9, 1), (*s, 3)))
        for c, s in zip(coarse, sizes, strict=True)
    ]


def loaders() -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("samfast-prefetch")
    ]


@pytest.mark.parametrize("prompts", ["looped", "packed", "nested"])
@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"crop_n_layers": 1, "points_per_batch": 4, "min_mask_region_area": 20}],
    ids=["plain", "crops"],
)
def test_records_are_those_of_one_image_at_a_time(
    photos: list[np.ndarray], prompts: str, deferred: bool, options: dict, monkeypatch
) -> None:
    if deferred:  # as on a GPU
        change_plans(monkeypatch, waiting_bytes=1 << 30)
    sam = fast(replace(RECIPES["fp32_sdpa"], prompts=prompts))
    want = [sam.segment([photo], **OPTIONS, **options)[0] for photo in photos]
    assert min(map(len, want)) >= 2
    assert sam.segment(photos, **OPTIONS, **options) == want
    assert list(sam.segment_each(iter(photos), **OPTIONS, **options)) == want
    assert not loaders()


@pytest.mark.parametrize("prompts", ["packed", "nested"])
def test_in_company_masks_differ_by_rounding_only(
    photos: list[np.ndarray], prompts: str, monkeypatch
) -> None:
    """Several images encoded and decoded together, as on a GPU."""
    sam = fast(replace(RECIPES["fp32_sdpa"], prompts=prompts))
    want = sam.segment(photos, **OPTIONS, output_mode="binary_mask")
    groups: list[tuple[int, ...]] = []
    init, decode = Segmenter.__init__, sam.decode
    change_plans(monkeypatch, waiting_bytes=1 << 30)

    def as_on_a_gpu(self, model, encode, decode, batch_size):
        init(self, model, encode, decode, batch_size)
        self._batch_size = batch_size
        self._model = replace(self._model, batch_across_crops=True)

    def seen(features, asked, *args, **kwargs):
        groups.append((len(features), *asked[0].images))
        return decode(features, asked, *args, **kwargs)

    seen.across_images, seen.low_memory = True, True  # type: ignore[attr-defined]
    monkeypatch.setattr(Segmenter, "__init__", as_on_a_gpu)
    monkeypatch.setattr(sam, "decode", seen)
    results = sam.segment(photos, **OPTIONS, output_mode="binary_mask")
    assert groups == [(3, 0, 1, 2), (2, 0, 1)]
    for ours, theirs in zip(results, want, strict=True):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert a["point_coords"] == b["point_coords"]
            assert a["predicted_iou"] == pytest.approx(b["predicted_iou"], abs=1e-4)
            assert (a["segmentation"] != b["segmentation"]).mean() < 1e-3


def as_beside_a_gpu(monkeypatch) -> list[str]:
    """Let the stream load and clean on threads, as beside a GPU; returns the names of those that
    cleaned.
    """
    threads: list[str] = []
    finish = generate.finish

    def note(crops, options):
        threads.append(threading.current_thread().name)
        return finish(crops, options)

    monkeypatch.setattr(segmenter, "finish", note)
    monkeypatch.setattr(segmenter, "works_beside_host", lambda device: True)
    monkeypatch.setattr(batch_loading, "works_beside_host", lambda device: True)
    change_plans(monkeypatch, waiting_bytes=1 << 30)
    return threads


def test_beside_a_gpu_masks_are_cleaned_on_a_thread(photos, monkeypatch) -> None:
    options: dict[str, Any] = {**OPTIONS, "min_mask_region_area": 20}
    sam = fast()
    want = [sam.segment([photo], **options)[0] for photo in photos]
    threads = as_beside_a_gpu(monkeypatch)
    many = photos * 3
    assert sam.segment(many, **options) == want * 3
    assert len(threads) == len(many) and all("samfast-clean" in name for name in threads)
    del threads[:]
    assert sam.segment(photos[:1], **options) == want[:1]  # alone it need not wait for a thread
    assert threads == [threading.current_thread().name]


def test_beside_a_gpu_a_single_image_is_loaded_without_a_thread(
    photos, monkeypatch, tmp_path
) -> None:
    sam = fast()
    want = [sam.segment([photo], **OPTIONS)[0] for photo in photos[:2]]
    as_beside_a_gpu(monkeypatch)
    here = threading.current_thread().name
    threads: list[str] = []
    # Where streams are looked up, which tensors on a GPU are read after.
    looked_up: list[str] = []

    def note(image, number):
        if not isinstance(image, LoadedImage):
            threads.append(threading.current_thread().name)
        return load_numbered(image, number)

    def note_streams():
        looked_up.append(threading.current_thread().name)
        return thread_loader()

    monkeypatch.setattr(batch_loading, "load_numbered", note)
    monkeypatch.setattr(batch_loading, "thread_loader", note_streams)
    assert sam.segment(photos[:1], **OPTIONS) == want[:1]
    assert threads == looked_up == [here]
    sam.segment(photos[:1], crop_n_layers=1, **OPTIONS)  # its crops are made by another thread
    assert looked_up == [here, here]
    del threads[:]
    assert sam.segment(photos[:2], **OPTIONS) == want
    assert len(threads) == 2 and all("samfast-image" in name for name in threads)
    with pytest.raises(ImageError, match="missing"):
        sam.segment([tmp_path / "missing.jpg"], **OPTIONS)


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_beside_a_gpu_an_error_comes_after_all_results_before_it(
    photos, monkeypatch, tmp_path, bad
) -> None:
    options: dict[str, Any] = {**OPTIONS, "min_mask_region_area": 20}
    sam = fast()
    want = [sam.segment([photo], **options)[0] for photo in photos]
    as_beside_a_gpu(monkeypatch)
    given: list[Any] = [*photos]
    given[bad] = tmp_path / "missing.jpg"
    seen = []
    answers = sam.segment_each(given, **options)
    for _ in range(bad):
        seen.append(next(answers))
    with pytest.raises(ImageError, match="missing"):
        next(answers)
    assert seen == want[:bad]
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("samfast-clean", "samfast-image"))]


def test_a_bad_image_comes_after_the_results_before_it(photos: list[np.ndarray], tmp_path) -> None:
    sam = fast()
    want = sam.segment(photos[:2], **OPTIONS)
    thin = np.zeros((1, 5000, 3), np.uint8)
    for bad, said in (
        (np.zeros((4, 4)), "image 2: "),
        (tmp_path / "none.jpg", "none.jpg"),
        (thin, "image 2: "),
    ):
        given: list[Any] = [*photos[:2], bad, photos[3]]
        results = sam.segment_each(given, **OPTIONS)
        assert [next(results), next(results)] == want
        with pytest.raises(ImageError, match=said):
            next(results)
        assert not loaders()
        with pytest.raises(ImageError, match=said):
            sam.segment(given, **OPTIONS)
    with pytest.raises(InputError, match="max_memory=5"):
        sam.segment(photos, max_memory=5)


def test_images_are_asked_for_a_few_ahead_and_no_thread_stays(photos: list[np.ndarray]) -> None:
    sam, taken = fast(), list[int]()

    def endless():
        while True:
            taken.append(len(taken))
            yield photos[0]

    results = sam.segment_each(endless(), **OPTIONS)
    first = next(results)
    assert next(results) == first
    assert len(taken) <= 5
    results.close()
    assert not loaders()
    forgotten = sam.segment_each(iter(photos), **OPTIONS)
    next(forgotten)
    del forgotten
    assert not loaders()
    assert sam.segment([], **OPTIONS) == []


@pytest.mark.parametrize("deferred", [False, True])
def test_progress_counts_the_points_of_all_images(
    photos: list[np.ndarray], deferred: bool, monkeypatch
) -> None:
    if deferred:  # as on a GPU
        change_plans(monkeypatch, waiting_bytes=1 << 30)
    options = {"points_per_batch": 4, "crop_n_layers": 1, **OPTIONS}
    calls: list[tuple[int, int | None]] = []
    want = fast().segment(photos[:2], **options)
    got = fast().segment(photos[:2], progress=lambda *each: calls.append(each), **options)
    assert got == want
    # Two images, each with four crops beside it, of nine points in batches of 4, 4 and 1.
    assert calls == [(9 * crop + done, 90) for crop in range(10) for done in (4, 8, 9)]


def test_progress_of_an_iterator_has_no_total(photos: list[np.ndarray]) -> None:
    calls: list[tuple[int, int | None]] = []
    for number, _ in enumerate(
        fast().segment_each(iter(photos[:3]), progress=lambda *each: calls.append(each), **OPTIONS)
    ):
        assert calls[number] == (9 * (number + 1), None)


def test_an_error_of_progress_is_raised(photos: list[np.ndarray]) -> None:
    def stop(done: int, total: int | None) -> None:
        if done > 9:
            raise ZeroDivisionError

    records = fast().segment_each(photos[:2], progress=stop, **OPTIONS)
    assert next(records)
    with pytest.raises(ZeroDivisionError):
        next(records)
    assert not loaders()


def test_an_error_leaves_nothing_behind(photos: list[np.ndarray]) -> None:
    model = copy.deepcopy(random_sam())
    with torch.no_grad():
        model.mask_decoder.output_upscaling[0].bias[3] = float("nan")
    sam = fast(model=model)
    features: list[Any] = []
    encode = sam.encode._encode

    def seen(pixels: torch.Tensor) -> torch.Tensor:
        made = encode(pixels)
        features.append(weakref.ref(made))
        return made

    sam.encode._encode = seen
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(NumericsError):
            sam.segment(photos, points_per_side=2)
        assert features and not any(each() is not None for each in features)
    finally:
        gc.enable()
    assert not loaders()


def test_gradients_stay_as_the_caller_has_them(photos: list[np.ndarray]) -> None:
    for _ in fast().segment_each(photos[:2], **OPTIONS):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("deferred", [False, True])
def test_answers_that_are_not_numbers_are_told(
    photos: list[np.ndarray], value: float, deferred: bool, monkeypatch
) -> None:
    if deferred:
        change_plans(monkeypatch, waiting_bytes=1 << 30)
    model = copy.deepcopy(random_sam())
    with torch.no_grad():
        model.mask_decoder.output_upscaling[0].bias[3] = value
    with pytest.raises(NumericsError, match="image 0, object 0: the answer holds NaN or infinity"):
        fast(model=model).segment(photos[:2], points_per_side=2)


def test_logits_wait_in_the_decoder_s_own_dtype(photos: list[np.ndarray], monkeypatch) -> None:
    sam = fast(replace(RECIPES["fp32_sdpa"], dtype=torch.bfloat16))
    seen = []
    answer = Segmenter._decode_points
    monkeypatch.setattr(
        Segmenter,
        "_decode_points",
        lambda *args, **named: seen.append(answer(*args, **named)) or seen[-1],
    )
    assert sam.segment(photos[:1], **OPTIONS)[0]
    assert {ours.low_res.dtype for ours in seen} == {torch.bfloat16}
    assert {ours.iou.dtype for ours in seen} == {torch.float32}
    embeddings = sam.embed(photos[:1])
    from samfast import Prompts

    assert (
        sam.predict(embeddings, [Prompts(boxes=[[0, 0, 9, 9]])])[0].low_res.dtype == torch.float32
    )


@pytest.mark.parametrize("ending", ["close", "break", "error"])
def test_ending_early_does_not_wait_for_an_iterator_that_blocks(photos, ending):
    come = threading.Event()
    asked = threading.Event()

    def stream():
        yield photos[0]
        asked.set()
        come.wait(60)
        yield photos[1]

    start = time.monotonic()
    answers = fast(batch_size=1).segment_each(stream(), **OPTIONS)
    try:
        for records in answers:
            assert records
            assert asked.wait(30)
            if ending == "error":
                raise KeyError(ending)
            break
    except KeyError:
        pass
    if ending != "break":
        answers.close()
    del answers
    assert time.monotonic() - start < 50
    assert loaders()
    come.set()
    until = time.monotonic() + 30
    while loaders() and time.monotonic() < until:
        time.sleep(0.01)
    assert not loaders()


def test_after_an_error_the_iterator_can_be_used_again(photos):
    rest = iter([photos[0], np.zeros((5, 5), np.float32), photos[1], photos[3]])
    answers = fast(batch_size=1).segment_each(rest, **OPTIONS)
    next(answers)
    with pytest.raises(ImageError):
        next(answers)
    assert not loaders()
    assert len(list(rest)) == 2
