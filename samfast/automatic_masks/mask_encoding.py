"""Masks that wait -> runs, or COCO's text: found on the device, a few masks at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samfast.automatic_masks import logit_crops
from samfast.automatic_masks.candidates import Mask, View
from samfast.automatic_masks.logit_crops import LogitCrop
from samfast.automatic_masks.memory_plan import Plan
from samfast.device.retry import RetryOnOOM
from samfast.device.transfer import AsyncHostCopy, DeviceJob
from samfast.device.triton_support import has_triton
from samfast.masks import mask_runs, postprocess
from samfast.masks.coco_text import Text
from samfast.masks.mask_runs import Changes, Runs

T = TypeVar("T")

Take = Callable[[Runs], Callable[[], Sequence[T]]]
"""Starts making something of runs; what it returns gives it, one a mask, and may wait."""


def on_device(found: Runs) -> Callable[[], list[Tensor]]:
    """Runs as they are, where they are (a `Take`)."""
    return found.each


def on_host(found: Runs) -> Callable[[], list[NDArray[np.int64]]]:
    """Runs as arrays (a `Take`)."""
    reading = AsyncHostCopy(found.lengths)
    return lambda: mask_runs.split(reading.wait()[0], found.numbers)


def as_text(found: Runs) -> Callable[[], list[str]]:
    """Runs as COCO's text (a `Take`)."""
    return Text(found)


def encode(
    masks: Sequence[Mask], view: View, plan: Plan, halving: RetryOnOOM, take: Take[T]
) -> DeviceJob[list[T]]:
    """What is made of each mask's runs in the whole image; waits once for all that fit the plan,
    and once more.
    """
    waiting = [(i, mask) for i, mask in enumerate(masks) if isinstance(mask, LogitCrop)]
    others = [(i, mask) for i, mask in enumerate(masks) if not isinstance(mask, LogitCrop)]
    begun: list[tuple[list[int], Callable[[], Sequence[T]]]] = []

    def work(start: int, stop: int) -> tuple[list[int], Changes]:
        own = waiting[start:stop]
        low_res = logit_crops.whole(logit_crops.joined([mask for _, mask in own]))
        words = postprocess.packed(low_res, view.frame, view.threshold)
        changes = Changes(words, view.frame.original_size[0], view.crop, view.image_size)
        return [i for i, _ in own], changes

    packs = bool(waiting) and has_triton(waiting[0][1].block.values.device)
    for own, changes in halving.map_chunks(
        len(waiting), plan.packed if packs else plan.masks, work
    ):
        yield
        for start, stop in bounded(changes.bytes(), plan.encoding):
            begun.append((own[start:stop], take(changes.runs(start, stop))))
    taken = np.array([len(mask) * mask_runs.RUN_BYTES for _, mask in others], dtype=np.int64)
    for start, stop in bounded(taken, plan.encoding):
        these = others[start:stop]
        begun.append(
            (
                [i for i, _ in these],
                take(mask_runs.join([mask for _, mask in these], view.image_size)),
            )
        )
    if waiting or any(isinstance(mask, Tensor) for _, mask in others):
        yield
    made = {i: each for own, get in begun for i, each in zip(own, get(), strict=True)}
    return [made[i] for i in range(len(masks))]


def bounded(taken: NDArray[np.int64], budget: int) -> Iterator[tuple[int, int]]:
    """From where to where things that take so many bytes fit together; what does not fit alone goes
    alone.
    """
    start = 0
    while start < len(taken):
        fit = int(np.searchsorted(np.cumsum(taken[start:]), budget, side="right"))
        stop = start + max(1, fit)
        yield start, stop
        start = stop
