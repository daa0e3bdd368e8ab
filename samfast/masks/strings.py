"""Runs as COCO's text, as pycocotools writes it, of many masks at once and on their device.

A run is written as the difference to the second run before it, from the fourth on, in groups of five bits, lowest
first; the sixth bit of a character says that more follow, and the highest of the last group is the number's sign.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from samfast.masks.runs import Runs

_GROUP = 5
_FIRST = ord("0")


def strings(runs: Runs) -> list[str]:
    """`counts` of each mask's compressed RLE (original: `coco_encode_rle`).

    Waits for the GPU twice: for how long each is, and for the text.
    """
    lengths, count = runs.lengths, len(runs)
    if not count:
        return []
    device = lengths.device
    numbers = runs.counts()
    starts = (runs.ends - numbers).repeat_interleave(numbers, output_size=len(lengths))
    before = F.pad(lengths, (2, 0))[:-2]
    from_fourth = torch.arange(len(lengths), device=device) - starts > 2
    rest = torch.where(from_fourth, lengths - before, lengths)
    most = -(-((runs.size[0] * runs.size[1]).bit_length() + 1) // _GROUP)  # groups that a number can need
    groups = torch.ones_like(rest)
    for group in range(1, most):
        half = 1 << (_GROUP * group - 1)
        groups += (rest < -half) | (rest >= half)
    ends = groups.cumsum(0)
    places = ends - groups
    nowhere = len(lengths) * most
    text = torch.empty(nowhere + 1, dtype=torch.uint8, device=device)
    for group in range(most):
        more = groups > group + 1
        character = _FIRST + (rest & 31) + 32 * more
        text[torch.where(groups > group, places + group, nowhere)] = character.to(torch.uint8)
        rest = rest >> _GROUP
    stops = ends[runs.ends - 1].tolist()
    written = text[: stops[-1]].cpu().numpy().tobytes().decode("ascii")
    return [written[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
