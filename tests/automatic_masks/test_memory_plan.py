"""A stated memory bounds what is done at a time, changes no result, and is refused if it cannot
do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from samfast.automatic_masks import memory_plan
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.point_model import PointModel
from samfast.errors import DeviceMemoryError, InputError
from samfast.images import input_size
from samfast.masks import postprocess_reference
from samfast.masks.resize_geometry import ResizeGeometry
from tests.automatic_masks.point_models import CPU, records_by
from tests.pairs import BlobSam, picture

OPTIONS = {
    "points_per_side": 7,
    "pred_iou_thresh": 0.7,
    "stability_score_thresh": 0.5,
    "crop_n_layers": 1,
}
SIDE = 256


def model_of(**fields: Any) -> PointModel[Any, Any]:
    """A model that is never called, of side 1024."""

    def never(*args: Any) -> Any:
        raise AssertionError(args)

    return PointModel(never, never, 1024, **fields)


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

    return records_by(
        picture(*size),
        AutomaticOptions(**({"output_mode": "coco_rle"} | OPTIONS | options)),
        encode=lambda pixels: torch.tensor([float(pixels.mean().round())]),
        decode=decode,
        side=SIDE,
    )


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
    geometry = ResizeGeometry(input_size((120, 160), SIDE), (120, 160), SIDE)
    tight = 2 * (
        memory_plan.DECODER_BYTES // 16 + 2 * (memory_plan.OBJECT_BYTES // 16 + 3 * 4 * 64 * 64)
    )
    assert run_generate(seen=decoded, max_memory=tight) == expected
    assert max(decoded) == 2
    most = tight // 4 // memory_plan.mask_bytes(geometry, (120, 160))
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
@pytest.mark.parametrize("per_call", [None, 4, 256])
def test_plans_stay_within_their_memory(
    size: tuple[int, int], device: torch.device, per_call: int | None
) -> None:
    model = model_of(device=device, objects_per_call=per_call)
    geometry = ResizeGeometry(input_size(size, 1024), size, 1024)
    mask = memory_plan.mask_bytes(geometry, size)
    for total in (4 * mask + (1 << 27), 8 * mask + (1 << 33)):
        plan = memory_plan.plan_memory(total, total, geometry, size, model)
        at_once = plan.points if per_call is None else min(per_call, plan.points)
        answers = 1 if device == CPU else 3
        decoding = (
            memory_plan.DECODER_BYTES
            + at_once * memory_plan.OBJECT_BYTES
            + plan.points * answers * 3 * 4 * 256 * 256
        )
        assert decoding <= total // 2
        assert plan.masks * mask <= total // 4
        assert plan.waiting_bytes == (
            0 if device == CPU else min(total // 4, memory_plan.MAX_WAITING_BYTES)
        )
        assert plan.masks <= memory_plan.MAX_MASKS
        assert plan.packed_masks * memory_plan.packed_bytes(geometry) <= total // 4
        assert plan.masks <= plan.packed_masks <= memory_plan.MAX_PACKED_MASKS
        more = plan.points + 1
        at_once = more if per_call is None else min(per_call, more)
        assert (
            memory_plan.DECODER_BYTES
            + at_once * memory_plan.OBJECT_BYTES
            + more * answers * 3 * 4 * 256 * 256
            > total // 2
        )
        assert plan.encoding_bytes <= total // 4
    least = memory_plan.plan_memory(None, 1, geometry, size, model)
    assert (least.points, least.masks, least.packed_masks) == (1, 1, 1)


def test_available_memory(monkeypatch) -> None:
    assert memory_plan.available_memory(123, CPU) == 123
    assert memory_plan.available_memory(None, CPU) == memory_plan.CPU_MEMORY
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    known = {
        "reserved_bytes": {"all": {"current": 500}},
        "allocated_bytes": {"all": {"current": 300}},
    }
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: known)
    assert memory_plan.available_memory(None, torch.device("cuda")) == 600
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: {})
    assert memory_plan.available_memory(None, torch.device("cuda")) == 500
    assert np.isclose(memory_plan.FREE_SHARE, 0.5)


def test_a_decoder_of_low_memory_takes_several_of_the_original_s_batches() -> None:
    model = model_of(objects_per_call=256)
    assert memory_plan.points_per_call(64, model) == 64
    model = replace(model, low_memory=True)
    several = [memory_plan.points_per_call(points, model) for points in (1, 64, 100, 300)]
    assert several == [4, 256, 256, 300]
    unlimited = replace(model, objects_per_call=None)
    assert memory_plan.points_per_call(64, unlimited) == 64 * memory_plan.MAX_BATCHES_PER_CALL > 64
