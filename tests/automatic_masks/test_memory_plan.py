"""A stated memory bounds what is done at a time, changes no result, and is refused if it cannot
do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from samfast.automatic_masks import generate, mask_encoding, memory_plan, pipeline
from samfast.automatic_masks.options import AutomaticOptions
from samfast.errors import DeviceMemoryError, InputError
from samfast.images import input_size
from samfast.masks import nms, postprocess, postprocess_reference
from samfast.masks.resize_geometry import ResizeGeometry
from tests.pairs import BlobSam, picture

CPU = torch.device("cpu")
OPTIONS = {
    "points_per_side": 7,
    "pred_iou_thresh": 0.7,
    "stability_score_thresh": 0.5,
    "crop_n_layers": 1,
}
SIDE = 256


def run_generate(
    size: tuple[int, int] = (120, 160),
    seen: list[int] | None = None,
    most: int = 1000,
    **options: Any,
) -> list[dict]:
    sam = BlobSam(SIDE)

    def decode(features: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if seen is not None:
            seen.append(len(points))
        if len(points) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sam.mask_decoder(features, None, points, points, True)

    return generate.generate(
        picture(*size),
        AutomaticOptions(**({"output_mode": "coco_rle"} | OPTIONS | options)),
        encode=lambda pixels: torch.tensor([float(pixels.mean().round())]),
        decode=decode,
        side=SIDE,
        input_size=input_size,
    )


@pytest.mark.parametrize("held", [1, 1 << 16, 1 << 40])
@pytest.mark.parametrize("masks", [1, 7, 1000])
@pytest.mark.parametrize("area", [0, 30])
def test_waiting_as_on_a_gpu_changes_nothing(held: int, masks: int, area: int, monkeypatch) -> None:
    expected = run_generate(min_mask_region_area=area)
    assert len(expected) >= 10
    inner, spilled = memory_plan.plan, []
    monkeypatch.setattr(
        memory_plan, "plan", lambda *args: replace(inner(*args), held=held, masks=masks)
    )
    own = mask_encoding.on_device
    monkeypatch.setattr(pipeline, "on_device", lambda found: spilled.append(1) or own(found))
    found = run_generate(min_mask_region_area=area, points_per_batch=6)
    assert found == expected
    assert bool(spilled) == (held < 1 << 40)


def test_only_what_remains_is_encoded(monkeypatch) -> None:
    inner, counts, packed = memory_plan.plan, [], postprocess.packed
    monkeypatch.setattr(memory_plan, "plan", lambda *args: replace(inner(*args), held=1 << 40))
    monkeypatch.setattr(
        postprocess, "packed", lambda low, *rest: counts.append(len(low)) or packed(low, *rest)
    )
    before, keep_there = [], nms.keep_there
    monkeypatch.setattr(
        nms,
        "keep_there",
        lambda boxes, *rest: before.append(len(boxes)) or keep_there(boxes, *rest),
    )
    found = run_generate(crop_n_layers=0)
    assert sum(counts) == len(found) < before[0]


def test_a_budget_bounds_what_is_decoded_and_upscaled(monkeypatch) -> None:
    expected = run_generate()
    decoded: list[int] = []
    upscaled: list[int] = []
    tiles = postprocess_reference.tiles
    monkeypatch.setattr(
        postprocess_reference,
        "tiles",
        lambda low, *rest, **wanted: upscaled.append(len(low)) or tiles(low, *rest, **wanted),
    )
    frame = ResizeGeometry(input_size((120, 160), SIDE), (120, 160), SIDE)
    tight = 2 * (memory_plan.DECODER // 16 + 2 * (memory_plan.OBJECT // 16 + 3 * 4 * 64 * 64))
    assert run_generate(seen=decoded, max_memory=tight) == expected
    assert max(decoded) == 2
    most = tight // 4 // memory_plan.mask_bytes(frame, (120, 160))
    assert 1 <= max(upscaled) <= most


def test_too_small_for_one_mask() -> None:
    with pytest.raises(
        InputError, match=r"max_memory=1000 .* 120 x 160 .* at least (\d+) bytes"
    ) as caught:
        run_generate(max_memory=1000)
    least = int(str(caught.value).split()[-2])
    assert run_generate(max_memory=least) == run_generate()
    with pytest.raises(InputError, match=f"at least {least}"):
        run_generate(max_memory=least - 1)


def test_a_decoder_out_of_memory_is_given_half(caplog) -> None:
    expected = run_generate()
    seen: list[int] = []
    assert run_generate(seen=seen, most=10, points_per_batch=16) == expected
    assert seen[:2] == [16, 8] and max(seen[1:]) == 8
    assert "16 at a time" in caplog.text
    with pytest.raises(DeviceMemoryError, match="points_per_batch"):
        run_generate(most=7, points_per_batch=16)


@pytest.mark.parametrize("size", [(100, 100), (20_000, 30_000)])
@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
@pytest.mark.parametrize("inner", [None, 4, 256])
def test_plans_stay_within_their_memory(
    size: tuple[int, int], device: torch.device, inner: int | None
) -> None:
    frame = ResizeGeometry(input_size(size, 1024), size, 1024)
    mask = memory_plan.mask_bytes(frame, size)
    for total in (4 * mask + (1 << 27), 8 * mask + (1 << 33)):
        plan = memory_plan.plan(total, total, frame, size, device, inner)
        at_once = plan.objects if inner is None else min(inner, plan.objects)
        answers = 1 if device == CPU else 3
        decoding = (
            memory_plan.DECODER
            + at_once * memory_plan.OBJECT
            + plan.objects * answers * 3 * 4 * 256 * 256
        )
        assert decoding <= total // 2
        assert plan.masks * mask <= total // 4
        assert plan.held == (0 if device == CPU else min(total // 4, memory_plan.HELD))
        assert plan.masks <= memory_plan.MASKS
        assert plan.packed * memory_plan.packed_bytes(frame) <= total // 4
        assert plan.masks <= plan.packed <= memory_plan.PACKED
        more = plan.objects + 1
        at_once = more if inner is None else min(inner, more)
        assert (
            memory_plan.DECODER + at_once * memory_plan.OBJECT + more * answers * 3 * 4 * 256 * 256
            > total // 2
        )
        assert plan.encoding <= total // 4
    least = memory_plan.plan(None, 1, frame, size, device, inner)
    assert (least.objects, least.masks, least.packed) == (1, 1, 1)


def test_what_is_taken_if_nothing_is_said(monkeypatch) -> None:
    assert memory_plan.available(123, CPU) == 123
    assert memory_plan.available(None, CPU) == memory_plan.CPU_MEMORY
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    known = {
        "reserved_bytes": {"all": {"current": 500}},
        "allocated_bytes": {"all": {"current": 300}},
    }
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: known)
    assert memory_plan.available(None, torch.device("cuda")) == 600
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: {})
    assert memory_plan.available(None, torch.device("cuda")) == 500
    assert np.isclose(memory_plan.SHARE, 0.5)


def test_a_lean_decoder_takes_several_of_the_original_s_batches() -> None:
    assert memory_plan.at_a_time(64, False, 256) == 64
    assert memory_plan.at_a_time(64, True, None) == 64 * memory_plan.WIDER > 64
    assert [memory_plan.at_a_time(points, True, 256) for points in (1, 64, 100, 300)] == [
        4,
        256,
        256,
        300,
    ]
