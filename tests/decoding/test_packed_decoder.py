"""What a packed decoder keeps from call to call."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from samfast.decoding.packed_decoder import MAX_GRIDS, PackedDecoder
from samfast.types import PackedPrompts
from tests.model.tiny import TINY, random_sam


def test_a_grid_s_parts_are_kept_by_value(monkeypatch):
    decoder = PackedDecoder(random_sam(TINY))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))

    def grid(first: float, image: int = 0) -> list[PackedPrompts]:
        points = torch.arange(first, first + 8).view(4, 1, 2)
        labels = torch.ones(4, 1, dtype=torch.int64)
        return [PackedPrompts(points, labels, None, None, (0, 4), (image,))]

    kept = decoder._kept(grid(0.0))
    assert decoder._kept(grid(0.0)) is kept
    assert decoder._kept(grid(1.0)) is not kept
    assert decoder._kept(grid(0.0, image=1)) is not kept
    for number in range(MAX_GRIDS):
        decoder._kept(grid(100.0 + number))
    assert len(decoder._grids) == MAX_GRIDS and decoder._kept(grid(0.0)) is not kept
    boxes = [PackedPrompts(None, None, torch.zeros(1, 4), None, (0, 1))]
    assert decoder._kept(boxes) is not decoder._kept(boxes)
