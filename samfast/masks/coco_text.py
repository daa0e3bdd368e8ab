"""Runs as COCO's text, as pycocotools writes it, of many masks at once and on their device.

A run is written as the difference to the second run before it, from the fourth on, in groups of
five bits, lowest first; the sixth bit of a character says that more follow, and the highest of the
last group is the number's sign.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.device.transfer import AsyncHostCopy, to_device
from samfast.device.triton_support import has_triton
from samfast.masks.mask_runs import Runs

_GROUP = 5
_FIRST = ord("0")


class Text:
    """`counts` of each mask's compressed RLE (original: `coco_encode_rle`), on its way to the
    host.
    """

    def __init__(self, runs: Runs) -> None:
        lengths, device = runs.lengths, runs.lengths.device
        self._reading: AsyncHostCopy | None = None
        if not len(runs):
            return
        ends = to_device(np.cumsum(runs.numbers), device)
        # Groups that a number can need; the room for all is the most that the text can take.
        most = -(-((runs.size[0] * runs.size[1]).bit_length() + 1) // _GROUP)
        if has_triton(device):
            from samfast.masks.kernels.write_coco_text import write

            self._reading = AsyncHostCopy(*write(lengths.contiguous(), ends, most))
        else:
            self._reading = AsyncHostCopy(
                *_write(lengths, ends, to_device(runs.numbers, device), most)
            )

    def __call__(self) -> list[str]:
        """One a mask; waits for the GPU, the first time."""
        if self._reading is None:
            return []
        text, ends = self._reading.wait()
        stops = ends.tolist()
        written = text[: stops[-1]].tobytes().decode("ascii")
        return [written[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def _write(lengths: Tensor, ends: Tensor, numbers: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """As `samfast.masks.kernels.write_coco_text.write`; numbers (N,), runs of each mask."""
    starts = (ends - numbers).repeat_interleave(numbers, output_size=len(lengths))
    before = F.pad(lengths, (2, 0))[:-2]
    from_fourth = torch.arange(len(lengths), device=lengths.device) - starts > 2
    rest = torch.where(from_fourth, lengths - before, lengths)
    groups = torch.ones_like(rest)
    for group in range(1, most):
        half = 1 << (_GROUP * group - 1)
        groups += (rest < -half) | (rest >= half)
    stops = groups.cumsum(0)
    places = stops - groups
    nowhere = len(lengths) * most
    text = torch.empty(nowhere + 1, dtype=torch.uint8, device=lengths.device)
    for group in range(most):
        more = groups > group + 1
        character = _FIRST + (rest & 31) + 32 * more
        text[torch.where(groups > group, places + group, nowhere)] = character.to(torch.uint8)
        rest = rest >> _GROUP
    return text, stops[ends - 1]


def strings(runs: Runs) -> list[str]:
    """The text of each mask, waited for."""
    return Text(runs)()
