"""Runs as COCO's text, as pycocotools writes it, of many masks at once and on their device.

A run is written as the difference to the second run before it, from the fourth on, in groups of
five bits, lowest first; the sixth bit of a character says that more follow, and the highest of the
last group is the number's sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samfast.device.transfer import AsyncHostCopy, to_device
from samfast.device.triton_support import has_triton
from samfast.masks.mask_runs import Runs

_GROUP = 5
_FIRST = ord("0")


def start_writing(runs: Runs) -> Callable[[], list[str]]:
    """Queue the writing of each mask's `counts` (original: `coco_encode_rle`).

    returns  a function that waits for the device and gives one text a mask
    """
    if not len(runs):
        return list
    device, masks = runs.ends.device, len(runs)
    if device.type == "cpu" and not has_triton(device):
        written = texts_on_host(runs.lengths.numpy(), runs.counts)
        return lambda: written
    # Most groups that a number can need; with room for all, no size has to be waited for.
    max_groups = -(-((runs.size[0] * runs.size[1]).bit_length() + 1) // _GROUP)
    if has_triton(device):
        from samfast.masks.kernels.write_coco_text import PLACE_BYTES, write

        both = AsyncHostCopy(write(runs.ends.contiguous(), runs.owners, masks, max_groups))

        def wait() -> Sequence[NDArray[Any]]:
            (made,) = both.wait()
            room = masks * PLACE_BYTES
            return made[room:], made[:room].view(np.int64)

    else:
        wait = AsyncHostCopy(*_write(runs, max_groups)).wait

    def finish() -> list[str]:
        text, text_ends = wait()
        stops = text_ends.tolist()
        written = text[: stops[-1]].tobytes().decode("ascii")
        return [written[start:stop] for start, stop in pairwise([0, *stops])]

    return finish


def strings(runs: Runs) -> list[str]:
    """The text of each mask, waited for."""
    return start_writing(runs)()


def texts_on_host(lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> list[str]:
    """The text of each mask; lengths (R,) are the runs of all masks, counts (N,) those of each.

    In NumPy: most numbers are complete after one or two characters and are left out of the rounds
    that follow, and torch's threads take longer to start than so few elements take.
    """
    ends = np.cumsum(counts)
    before = np.concatenate([np.zeros(2, np.int64), lengths[:-2]])[: len(lengths)]
    for turn in range(3):  # the first three runs of a mask are written as they are
        before[(ends - counts + turn)[counts > turn]] = 0
    rest = lengths - before
    # Characters of each number: its magnitude's bits and one for the sign, five in each.
    magnitude = np.where(rest < 0, ~rest, rest).astype(np.float64)
    groups = np.maximum(1, (np.frexp(magnitude)[1] + _GROUP) // _GROUP)
    stops = np.cumsum(groups)
    place = stops - groups
    text = np.empty(stops[-1], np.uint8)
    while len(rest):
        more = groups > 1
        text[place] = _FIRST + (rest & 31) + 32 * more
        rest, groups, place = rest[more] >> _GROUP, groups[more] - 1, place[more] + 1
    decoded = text.tobytes().decode("ascii")
    bounds = [0, *stops[ends - 1].tolist()]
    return [decoded[start:stop] for start, stop in pairwise(bounds)]


def _write(runs: Runs, max_groups: int) -> tuple[Tensor, Tensor]:
    """The texts of the masks, one after another, and where each ends (N,), on a device without
    Triton.
    """
    lengths, owners = runs.lengths, runs.owners
    before = F.pad(lengths, (2, 0))[:-2]
    from_fourth = F.pad(owners, (3, 0), value=-1)[:-3] == owners
    rest = torch.where(from_fourth, lengths - before, lengths)
    groups = torch.ones_like(rest)
    for group in range(1, max_groups):
        half = 1 << (_GROUP * group - 1)
        groups += (rest < -half) | (rest >= half)
    stops = groups.cumsum(0)
    places = stops - groups
    discarded = len(lengths) * max_groups
    text = torch.empty(discarded + 1, dtype=torch.uint8, device=lengths.device)
    for group in range(max_groups):
        more = groups > group + 1
        character = _FIRST + (rest & 31) + 32 * more
        text[torch.where(groups > group, places + group, discarded)] = character.to(torch.uint8)
        rest = rest >> _GROUP
    return text, stops[to_device(np.cumsum(runs.counts) - 1, lengths.device)]
