"""Masks as COCO's text are those of `predict`, whatever their sizes, number and order."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from samfast.decoding import decoded_prompts
from samfast.decoding.decoded_prompts import DecodedPrompts
from samfast.decoding.decoder_output import DecoderOutput
from samfast.decoding.image_masks import image_masks, image_offsets
from samfast.device.retry import RetryOnOOM
from samfast.errors import EmbeddingsError, NumericsError, PromptError
from samfast.images.resize import input_size
from samfast.masks import coco_text
from samfast.masks.mask_runs import PackedMasks, PixelChanges
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.prompted_masks import encoded_rows
from samfast.prompted_masks.host_answers import groups_of, record_answers, rle_masks
from samfast.prompts import pack_groups, pack_objects
from samfast.prompts.device_checks import NON_FINITE, DeviceChecks, wrong_prompts
from samfast.types import Embeddings, Prompts
from tests.device_jobs import run_to_completion
from tests.serve.running import tiny_engine

SIDE = 64
SIZES = ((37, 50), (37, 50), (64, 31), (37, 50), (1, 1), (33, 40), (33, 40), (64, 31))
COUNTS = (2, 1, 3, 0, 1, 2, 4, 1)


def decoded(device: str = "cpu", masks: int = 3) -> DecodedPrompts:
    """Made-up logits of objects of images of many sizes; some masks are empty, and some full."""
    draw = np.random.default_rng(0)
    inputs = tuple(input_size(size, SIDE, "x") for size in SIZES)
    embeddings = Embeddings(torch.zeros(len(SIZES), 1, 1, 1, device=device), SIZES, inputs, "x")
    prompts = [
        # Clicks and boxes are decoded apart, so that images do not keep their order.
        Prompts(points=[[[0.5, 0.5]]] * count, labels=[[1]] * count)
        if number % 3 == 1
        else Prompts(boxes=[[0, 0, size[1], size[0]]] * count)
        for number, (size, count) in enumerate(zip(SIZES, COUNTS, strict=True))
    ]
    packed = pack_groups(prompts, SIZES, inputs, (16, 16), range(len(SIZES)))
    logits = draw.normal(size=(sum(COUNTS), masks, 16, 16)) + draw.normal(
        scale=0.7, size=(sum(COUNTS), masks, 1, 1)
    )
    logits[0, 0], logits[1, -1] = -9, 9
    output = DecoderOutput(
        torch.from_numpy(logits).float().to(device),
        torch.from_numpy(draw.random((sum(COUNTS), masks), dtype=np.float32)).to(device),
        torch.zeros(sum(COUNTS), dtype=torch.uint8, device=device),
    )
    return DecodedPrompts(output, packed, embeddings, prompts, range(len(SIZES)), SIDE, 0.0)


def assert_rle_is_that_of_the_masks(device: str) -> None:
    """Of all images, against pycocotools."""
    made = decoded(device)
    wanted = [each.cpu() for each in image_masks(made, RetryOnOOM(""))]
    for size, want, got in zip(SIZES, wanted, rle_masks(made), strict=True):
        assert got.size == size
        assert got.ious == want.iou.flatten().tolist()
        assert torch.equal(got.low_res.cpu(), want.low_res)
        masks = want.masks.flatten(0, 1).numpy()
        assert len(masks) == len(got.counts) == len(got.areas) == len(got.boxes)
        for index, mask in enumerate(masks):
            counted = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
            assert got.counts[index] == counted["counts"].decode()
            assert np.array_equal(coco.decode(got.rle(index)), mask)
            assert got.areas[index] == mask.sum()
            rows, columns = np.nonzero(mask)
            box = (0, 0, 0, 0)
            if len(rows):
                left, top = columns.min(), rows.min()
                box = (left, top, columns.max() - left + 1, rows.max() - top + 1)
            assert got.boxes[index] == box


@pytest.fixture(params=["on the host", "as on a GPU"])
def way(request, monkeypatch) -> None:
    """Both ways on a CPU, that of a GPU with the references of its kernels."""
    monkeypatch.setattr(
        encoded_rows, "works_beside_host", lambda device: request.param != "on the host"
    )


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("limit", [encoded_rows.MAX_BYTES, 6000])
def test_masks_of_many_sizes(limit, monkeypatch):
    monkeypatch.setattr(encoded_rows, "MAX_BYTES", limit)  # the second: a few masks at a time
    assert_rle_is_that_of_the_masks("cpu")


def test_neighbours_of_one_size_are_encoded_together():
    made = decoded()
    groups = groups_of(made)
    assert groups[0][1] == 0 and groups[-1][2] == sum(COUNTS)
    assert all(one[2] == other[1] for one, other in pairwise(groups))
    assert all(one[0] != other[0] for one, other in pairwise(groups))
    for image, start, stop in image_offsets(made.packed):
        if start < stop:
            (group,) = [group for group in groups if group[1] <= start and stop <= group[2]]
            assert group[0].original_size == SIZES[image]
    assert len(groups) < len(SIZES)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("best", [False, True])
def test_records_are_those_of_each_image_alone(best):
    made = decoded()
    together = {image: run_to_completion(job) for image, job in record_answers(made, best=best)}
    rle = rle_masks(made)
    for image, records in together.items():
        each = 1 if best else 3
        assert len(records) == COUNTS[image] * each
        for index, record in enumerate(records):
            place = index
            if best:
                ious = rle[image].ious[3 * index : 3 * index + 3]
                place = 3 * index + ious.index(max(ious))
            assert record["segmentation"] == rle[image].rle(place)
            assert record["area"] == rle[image].areas[place]
            assert record["predicted_iou"] == rle[image].ious[place]
            x, y, width, height = rle[image].boxes[place]
            assert record["bbox"] == [x, y, max(0, width - 1), max(0, height - 1)]


@pytest.mark.usefixtures("way")
def test_one_image_s_nan_is_its_own_failure():
    made = decoded()
    bad, start, _ = image_offsets(made.packed)[1]
    made.output.codes[start] = NON_FINITE
    with pytest.raises(NumericsError, match=f"image {bad}, object 0"):
        rle_masks(made)
    failed = []
    for image, job in record_answers(made):
        try:
            run_to_completion(job)
        except NumericsError:
            failed.append(image)
    assert failed == [bad]


def test_texts_that_cannot_be_written_fail_for_each_image(monkeypatch):
    """The second one must not go on with what the first has left."""
    monkeypatch.setattr(encoded_rows, "works_beside_host", lambda device: True)
    monkeypatch.setattr(encoded_rows, "MAX_BYTES", 2000)

    def fail(runs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(coco_text, "start_writing", fail)
    jobs = [job for _, job in record_answers(decoded())]
    for job in jobs[:2]:
        with pytest.raises(torch.OutOfMemoryError):
            run_to_completion(job)


@pytest.mark.usefixtures("way")
def test_images_without_objects():
    made = decoded()
    keep = [number for number, count in enumerate(COUNTS) if not count]
    prompts = [made.prompts[number] for number in keep]
    embeddings = Embeddings(
        made.embeddings.features[keep],
        tuple(SIZES[number] for number in keep),
        tuple(made.embeddings.input_sizes[number] for number in keep),
        "x",
    )
    sizes = embeddings.original_sizes, embeddings.input_sizes
    packed = pack_groups(prompts, *sizes, (16, 16), range(len(keep)))
    none = DecodedPrompts(
        made.output.rows(0, 0), packed, embeddings, prompts, range(len(keep)), SIDE, 0.0
    )
    assert [masks.counts for masks in rle_masks(none)] == [[]] * len(keep)
    assert [run_to_completion(job) for _, job in record_answers(none)] == [[]] * len(keep)


def test_nothing_is_encoded_of_nothing():
    made = decoded()
    none = DecodedPrompts(made.output.rows(0, 0), [], made.embeddings[:0], [], [], SIDE, 0.0)
    assert rle_masks(none) == []


def test_a_large_image_does_not_make_the_chunks_of_small_ones_shorter(monkeypatch):
    monkeypatch.setattr(encoded_rows, "works_beside_host", lambda device: True)
    large, small = 300, 50  # bytes of a mask

    def packed_bytes(geometry: ResizeGeometry) -> int:
        return large if geometry.original_size == (64, 31) else small

    monkeypatch.setattr(encoded_rows, "_packed_bytes", packed_bytes)
    monkeypatch.setattr(encoded_rows, "MAX_BYTES", large)
    chunks: list[int] = []

    def count(*groups: PackedMasks) -> PixelChanges:
        chunks.append(sum(map(len, groups)))
        return PixelChanges(*groups)

    monkeypatch.setattr(encoded_rows, "PixelChanges", count)
    rle_masks(decoded())
    assert sum(chunks) == 3 * sum(COUNTS)
    assert max(chunks) == large // small and chunks.count(1) >= 3 * (3 + 1)


def test_packed_prompts_have_the_same_answers_in_columns():
    sam = tiny_engine()
    draw = np.random.default_rng(2)
    pictures = [draw.integers(0, 256, (height, 90, 3), np.uint8) for height in (60, 80, 60)]
    embeddings = sam.embed(pictures)
    sizes = embeddings.original_sizes, embeddings.input_sizes
    clicks = [[(30.0, 20.0)], [(40.0, 50.0), (5.5, 6.0)], [(9.0, 8.0)]]
    labels, boxes = [[1], [1, 0], [1]], [(1.0, 2.0, 50.0, 55.5), (10.0, 10.0, 80.0, 40.0)]
    packed = [
        pack_objects(clicks, labels, None, None, (0, 1, 1), *sizes),
        pack_objects(None, None, boxes, None, (0, 2), *sizes),
    ]
    for multimask in (True, False):
        got = sam.predict_rle_batch(embeddings, packed, multimask=multimask)
        clicked = [
            Prompts(points=clicks[:1], labels=labels[:1]),
            Prompts(points=clicks[1:], labels=labels[1:]),
        ]
        wanted = [
            *sam.predict_rle(sam.embed(pictures[:2]), clicked, multimask=multimask),
            *sam.predict_rle(
                sam.embed(pictures[::2]),
                [Prompts(boxes=[box]) for box in boxes],
                multimask=multimask,
            ),
        ]
        assert got.areas.dtype == got.boxes.dtype == np.int32
        assert got.ious.dtype == np.float32
        assert got.counts == [each for masks in wanted for each in masks.counts]
        assert got.areas.tolist() == [each for masks in wanted for each in masks.areas]
        assert got.boxes.tolist() == [list(each) for masks in wanted for each in masks.boxes]
        ious = [each for masks in wanted for each in masks.ious]
        np.testing.assert_allclose(got.ious, ious, rtol=1e-4, atol=1e-6)
        logits = torch.cat([masks.low_res for masks in wanted])
        torch.testing.assert_close(got.low_res, logits, rtol=1e-4, atol=1e-4)
    assert sam.predict_rle_batch(embeddings, packed[1:]).low_res.shape[0] == 2
    outside = pack_objects([[(91.0, 5.0)]], [[1]], None, None, [2], *sizes)
    with pytest.raises(PromptError, match=r"image 2, object 0.* outside"):
        sam.predict_rle_batch(embeddings, [packed[0], outside])
    with pytest.raises(EmbeddingsError):
        sam.predict_rle_batch(replace(embeddings, fingerprint="another"), packed)
    unwrapped: Any
    for unwrapped in (packed[0], [], None):
        with pytest.raises(PromptError, match="a list of PromptBatches; wrap a single one"):
            sam.predict_rle_batch(embeddings, unwrapped)
    for unpacked in ("points", [Prompts(boxes=[[0, 0, 9, 9]])], [None]):
        with pytest.raises(PromptError, match="instead of a PromptBatch"):
            sam.predict_rle_batch(embeddings, cast("Any", unpacked))


def test_what_is_wrong_with_prompts_on_the_device_is_raised_with_the_answers(monkeypatch):
    sam = tiny_engine()
    embeddings = sam.embed([np.zeros((60, 90, 3), np.uint8)] * 2)
    sizes = embeddings.original_sizes, embeddings.input_sizes
    outside = pack_objects([[(9.0, 9.0)], [(95.0, 9.0)]], [[1], [1]], None, None, (0, 1), *sizes)

    def unread(prompts: Any, _: None, embeddings: Embeddings, device: Any) -> Any:
        codes = wrong_prompts(prompts, embeddings.input_sizes)
        return prompts, DeviceChecks(codes, range(len(embeddings)), prompts.offsets)

    monkeypatch.setattr(decoded_prompts, "batch_prompts", unread)
    monkeypatch.setattr(decoded_prompts, "on_host", lambda codes: False)
    with pytest.raises(PromptError, match=r"image 1, object 0: a point or box lies outside"):
        sam.predict_rle_batch(embeddings, [outside])
