"""Masks on a GPU: nothing waits where nothing has to, memory is bounded, and records are the CPU's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samfast.images import input_size
from samfast.masks import everything, nms, op, rle, runs, upscale
from samfast.masks.frame import Frame
from samfast.masks.options import AutomaticOptions
from samfast.masks.reading import finish
from samfast.masks.strings import strings
from tests.pairs import BlobSam, picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FRAME = Frame(input_size((853, 1280), 1024), (853, 1280), 1024)


def blobs(points: int = 20) -> torch.Tensor:
    """(3 * points, 256, 256) logits on the GPU."""
    place = torch.rand(points, 1, 2, generator=torch.Generator().manual_seed(0)) * 700
    return BlobSam(1024).mask_decoder(torch.zeros(1), None, place, place, True)[0].flatten(0, 1).cuda()


def test_masks_and_measures_do_not_wait() -> None:
    low_res = blobs()
    for _ in range(2):  # the first compiles
        masks = op.masks(low_res, FRAME)
        measures = op.measure(low_res, FRAME, 0.0, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        op.masks(low_res, FRAME)
        op.measure(low_res, FRAME, 0.0, 1.0)
        op.packed(low_res, FRAME)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    want = upscale.logits(low_res[:, None], FRAME.input_size, FRAME.original_size, 1024)[:, 0] > 0
    assert (masks != want).sum() <= 1e-5 * want.numel()
    assert torch.equal(measures.area, masks.sum((1, 2), dtype=torch.int32))


def test_text_and_suppression_are_the_hosts() -> None:
    low_res = blobs()
    masks = op.masks(low_res, FRAME)
    found = strings(runs.Changes(op.packed(low_res, FRAME), 853).runs())
    assert found == strings(runs.join(rle.encode(masks.cpu()), (853, 1280)))
    around = op.measure(low_res, FRAME, 0.0, 1.0).boxes
    scores = torch.rand(len(around), generator=torch.Generator().manual_seed(1))
    asked = around.cpu().numpy(), scores.numpy(), 0.5
    kept = finish(nms.keep_there(*asked, around.device))
    assert kept.tolist() == nms.keep(*asked).tolist()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("max_memory", [None, 1 << 28])
def test_records_and_memory(device: str, max_memory: int | None) -> None:
    sam = BlobSam(1024)

    def generate(place: str, budget: int | None) -> list[dict]:
        def decode(features: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            low_res, iou = sam.mask_decoder(features, None, points, points, True)
            return low_res.to(place), iou.to(place)

        return everything.generate(
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
            input_size=input_size,
            device=torch.device(place),
        )

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = generate(device, max_memory)
    if max_memory is not None:
        assert torch.cuda.max_memory_allocated() - before <= max_memory
    want = generate("cpu", None)
    assert len(found) == len(want) >= 10
    for own, their in zip(found, want, strict=True):
        assert own["point_coords"] == their["point_coords"]
        assert abs(own["area"] - their["area"]) <= 1e-4 * 600 * 800
