"""Automatic masks by all the kernels of `samfast.masks` together are those of plain torch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from samfast.automatic_masks import logit_crops
from samfast.masks import coco_text, mask_runs, nms, postprocess
from samfast.masks.kernels import box_overlaps, greedy_nms, postprocess_tiles
from tests.automatic_masks.point_models import change_plans
from tests.automatic_masks.test_memory_plan import run_generate

SMALL = {"size": (45, 60), "points_per_side": 3, "crop_n_layers": 0}


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="tests/gpu has it there; here it is the interpreter's"
)
def test_everything_in_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    want = run_generate(**SMALL)
    assert len(want) >= 3
    change_plans(monkeypatch, waiting_bytes=1 << 40)  # as on a GPU
    ran = set()
    for module in (postprocess, mask_runs, coco_text, nms, logit_crops):
        monkeypatch.setattr(
            module, "has_triton", lambda device, name=module.__name__: ran.add(name) or True
        )
    launched = []
    for kernel in (greedy_nms, box_overlaps, postprocess_tiles):
        launch = kernel.launch
        monkeypatch.setattr(
            kernel,
            "launch",
            lambda *a, run=launch, name=kernel.__name__, **k: launched.append(name) or run(*a, **k),
        )
    assert run_generate(**SMALL) == want
    assert ran == {
        module.__name__ for module in (postprocess, mask_runs, coco_text, nms, logit_crops)
    }
    assert {*launched} == {
        kernel.__name__ for kernel in (greedy_nms, box_overlaps, postprocess_tiles)
    }
