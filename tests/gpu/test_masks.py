"""Masks on a GPU: few waits, bounded memory, and the CPU's records."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samfast.automatic_masks import memory_plan
from samfast.automatic_masks.options import AutomaticOptions
from samfast.images import input_size
from samfast.masks import mask_runs, nms, postprocess, rle, upscale
from samfast.masks.coco_text import strings
from samfast.masks.measures import AREA, BOX
from samfast.masks.resize_geometry import ResizeGeometry
from tests.automatic_masks.point_models import records_by
from tests.gpu.test_encoder_steps import no_waiting
from tests.pairs import BlobSam, picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ENOUGH = 64 << 20
"""Bytes for all logits that wait here."""
GEOMETRY = ResizeGeometry(input_size((853, 1280), 1024), (853, 1280), 1024)


def blobs(points: int = 20) -> torch.Tensor:
    """(3 * points, 256, 256) logits on the GPU."""
    place = torch.rand(points, 1, 2, generator=torch.Generator().manual_seed(0)) * 700
    return (
        BlobSam(1024).mask_decoder(torch.zeros(1), None, place, place, True)[0].flatten(0, 1).cuda()
    )


def test_masks_and_measures_do_not_wait() -> None:
    low_res = blobs()
    for _ in range(2):  # the first compiles
        masks = postprocess.masks(low_res, GEOMETRY)
        measures = postprocess.measure(low_res, GEOMETRY, 0.0, 1.0)
    postprocess.packed(low_res, GEOMETRY)
    with no_waiting():
        postprocess.masks(low_res, GEOMETRY)
        postprocess.measure(low_res, GEOMETRY, 0.0, 1.0)
        postprocess.packed(low_res, GEOMETRY)
    want = (
        upscale.logits(low_res[:, None], GEOMETRY.input_size, GEOMETRY.original_size, 1024)[:, 0]
        > 0
    )
    assert (masks != want).sum() <= 1e-5 * want.numel()
    assert torch.equal(measures[:, AREA], masks.sum((1, 2), dtype=torch.int32))


def test_text_and_suppression_are_the_hosts() -> None:
    low_res = blobs()
    masks = postprocess.masks(low_res, GEOMETRY)
    packed = mask_runs.PackedMasks.of(postprocess.packed(low_res, GEOMETRY), 853)
    texts = strings(mask_runs.PixelChanges(packed).runs())
    assert texts == strings(mask_runs.join(rle.encode(masks.cpu()), (853, 1280)))
    around = postprocess.measure(low_res, GEOMETRY, 0.0, 1.0)[:, BOX]
    scores = torch.rand(len(around), generator=torch.Generator().manual_seed(1))
    arguments = around.cpu().numpy(), scores.numpy(), 0.5
    kept = nms.start_keeping(*arguments, around.device)()
    assert kept.tolist() == nms.keep(*arguments).tolist()


def everything_of(low_res: torch.Tensor, iou: torch.Tensor, side: int) -> list[dict]:
    """The records of given outputs, one a point."""
    place = 0

    def encode(pixels: np.ndarray) -> str:
        return "features"

    def decode(features: str, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal place
        rows = slice(place, place + len(points))
        place += len(points)
        return low_res[rows], iou[rows]

    return records_by(
        picture(853, 1280),
        AutomaticOptions(
            points_per_side=side,
            points_per_batch=16,
            pred_iou_thresh=0.7,
            stability_score_thresh=0.5,
            output_mode="coco_rle",
        ),
        encode,
        decode,
        side=1024,
        device=low_res.device,
    )


@pytest.mark.parametrize("waiting_bytes", [ENOUGH, 8 << 20])
def test_only_few_host_copies_are_waited_for(waiting_bytes: int, monkeypatch) -> None:
    place = torch.rand(64, 1, 2, generator=torch.Generator().manual_seed(0)) * 700
    low_res, iou = BlobSam(1024).mask_decoder(torch.zeros(1), None, place, place, True)
    want = everything_of(low_res, iou, 8)
    low_res, iou = low_res.cuda(), iou.cuda()
    monkeypatch.setattr(memory_plan, "MAX_WAITING_BYTES", waiting_bytes)
    records = everything_of(low_res, iou, 8)  # compiles
    assert [each["point_coords"] for each in records] == [each["point_coords"] for each in want]
    assert len(records) >= 10
    waits, synchronize = [], torch.cuda.Event.synchronize
    monkeypatch.setattr(
        torch.cuda.Event, "synchronize", lambda event: waits.append(1) or synchronize(event)
    )
    with no_waiting():
        assert everything_of(low_res, iou, 8) == records
    batches, chunks = 4, -(-len(records) // memory_plan.MAX_PACKED_MASKS)
    spilled = 0 if waiting_bytes == ENOUGH else batches
    # A batch's measures; suppression; of what remains how many runs it has, and the text.
    assert len(waits) <= batches + 1 + 2 * (chunks + 1) + spilled


def test_many_masks_need_little_memory() -> None:
    """Memory is bounded by two calls' outputs, waiting logits and encoding, not by all points."""
    place = torch.rand(16, 1, 2, generator=torch.Generator().manual_seed(0)) * 700
    low_res, iou = BlobSam(1024).mask_decoder(torch.zeros(1), None, place, place, True)
    low_res, iou = low_res.cuda().bfloat16(), iou.cuda()
    everything_of(low_res.repeat(4, 1, 1, 1), iou.repeat(4, 1), 8)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    many = low_res.repeat(64, 1, 1, 1)
    given = many.numel() * many.element_size()
    assert everything_of(many, iou.repeat(64, 1), 32)
    assert torch.cuda.max_memory_allocated() - before - given <= memory_plan.MAX_WAITING_BYTES + (
        128 << 20
    )


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("max_memory", [None, 1 << 28])
def test_records_and_memory(device: str, max_memory: int | None) -> None:
    sam = BlobSam(1024)

    def generated(place: str, budget: int | None) -> list[dict]:
        def decode(
            features: torch.Tensor, points: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            low_res, iou = sam.mask_decoder(features, None, points, points, True)
            return low_res.to(place), iou.to(place)

        return records_by(
            picture(600, 800),
            AutomaticOptions(
                points_per_side=16,
                pred_iou_thresh=0.7,
                stability_score_thresh=0.5,
                output_mode="coco_rle",
                max_memory=budget,
            ),
            encode=lambda pixels: torch.tensor([float(np.mean(pixels).round())]),
            decode=decode,
            side=1024,
            device=torch.device(place),
        )

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    records = generated(device, max_memory)
    if max_memory is not None:
        assert torch.cuda.max_memory_allocated() - before <= max_memory
    want = generated("cpu", None)
    assert len(records) == len(want) >= 10
    for ours, theirs in zip(records, want, strict=True):
        assert ours["point_coords"] == theirs["point_coords"]
        assert abs(ours["area"] - theirs["area"]) <= 1e-4 * 600 * 800
