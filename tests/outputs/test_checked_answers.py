"""An answer that holds NaN or infinity is never written, on a GPU neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from samfast import outputs
from samfast.device.checked_tensor import checked
from samfast.errors import NumericsError
from samfast.types import Masks

WRITERS: dict[str, Callable[[Path, Masks], object]] = {
    "records_of": lambda path, masks: outputs.records_of(masks, torch.ones(2, 3)),
    "write_masks_npz": lambda path, masks: outputs.write_masks_npz(path, masks),
    "write_labels": lambda path, masks: outputs.write_labels(path, masks.best(), (9, 8)),
    "write_overlay": lambda path, masks: outputs.write_overlay(
        path.with_suffix(".png"), np.zeros((9, 8, 3), np.uint8), masks.masks[0]
    ),
    "encode": lambda path, masks: outputs.encode(masks.masks[0, 0]),
    "cpu": lambda path, masks: masks.cpu(),
    "verify": lambda path, masks: masks.verify(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_passes_a_non_finite_answer_by(tmp_path: Path, name: str) -> None:
    """As of a GPU, where the answer is checked when it is read."""

    def check() -> None:
        raise NumericsError("image 0, object 1: the answer holds NaN")

    masks = checked(torch.zeros(2, 3, 9, 8, dtype=torch.bool), check)
    iou, low_res = checked(torch.ones(2, 3), check), checked(torch.zeros(2, 3, 4, 4), check)
    answer = Masks(masks, iou, low_res, check)
    with pytest.raises(NumericsError, match="image 0, object 1"):
        WRITERS[name](tmp_path / "a.npz", answer)
    assert list(tmp_path.iterdir()) == []
