"""Waiting masks -> runs or COCO's text, computed on the device, a few masks at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samfast.automatic_masks import logit_crops
from samfast.automatic_masks.crop_state import CropState
from samfast.automatic_masks.generated_masks import Mask
from samfast.automatic_masks.logit_crops import LogitCrop, LogitCrops
from samfast.device.transfer import AsyncHostCopy, DeviceJob
from samfast.device.triton_support import has_triton
from samfast.masks import coco_text, mask_runs, postprocess
from samfast.masks.mask_runs import PackedMasks, PixelChanges, Runs

T = TypeVar("T")

Convert = Callable[[Runs], Callable[[], Sequence[T]]]
"""Queue the conversion of runs; the returned function may wait, and gives one result a mask."""


as_text = coco_text.start_writing
"""A `Convert`: runs as COCO's text."""


def on_device(runs: Runs) -> Callable[[], list[Tensor]]:
    """A `Convert`: runs as they are, on their device."""
    return runs.on_device


def on_host(runs: Runs) -> Callable[[], list[NDArray[np.int64]]]:
    """A `Convert`: runs as arrays on the host."""
    copy = AsyncHostCopy(runs.lengths)
    return lambda: mask_runs.split(copy.wait()[0], runs.counts)


def encode(masks: Sequence[Mask], state: CropState, convert: Convert[T]) -> DeviceJob[list[T]]:
    """The converted runs of each of a crop's masks, logit crops or runs, in the whole image.

    Waits once for each chunk of logit crops that the plan allows, and once more for the results.
    """
    crop, plan = state.crop, state.plan
    waiting, numbers, encoded = _waiting_and_encoded(masks)
    queued: list[tuple[list[int], Callable[[], Sequence[T]]]] = []

    def pack(start: int, stop: int) -> tuple[list[int], PixelChanges]:
        low_res = logit_crops.restore(waiting[start:stop])
        words = postprocess.packed(low_res, crop.geometry, crop.threshold)
        height = crop.geometry.original_size[0]
        packed = PackedMasks.of(words, height, crop.box, crop.image_size)
        return numbers[start:stop], PixelChanges(packed)

    by_kernel = len(waiting) > 0 and has_triton(waiting.batches[0].device)
    step = plan.packed_masks if by_kernel else plan.masks
    for index, changes in state.retry.map_chunks(len(waiting), step, pack):
        yield
        for start, stop in mask_runs.chunks_within(changes.bytes(), plan.encoding_bytes):
            queued.append((index[start:stop], convert(changes.runs(start, stop))))
    run_bytes = np.array([len(runs) * mask_runs.RUN_BYTES for _, runs in encoded], dtype=np.int64)
    for start, stop in mask_runs.chunks_within(run_bytes, plan.encoding_bytes):
        index = [i for i, _ in encoded[start:stop]]
        joined = mask_runs.join([runs for _, runs in encoded[start:stop]], crop.image_size)
        queued.append((index, convert(joined)))
    if waiting or any(isinstance(runs, Tensor) for _, runs in encoded):
        yield
    results = {i: mask for index, get in queued for i, mask in zip(index, get(), strict=True)}
    return [results[i] for i in range(len(masks))]


def _waiting_and_encoded(
    masks: Sequence[Mask],
) -> tuple[LogitCrops, list[int], list[tuple[int, Tensor | NDArray[np.int64]]]]:
    """The logit crops among masks, their indices, and the runs among masks with theirs."""
    if isinstance(masks, LogitCrops):
        return masks, [*range(len(masks))], []
    crops = [(i, mask) for i, mask in enumerate(masks) if isinstance(mask, LogitCrop)]
    encoded = [(i, mask) for i, mask in enumerate(masks) if not isinstance(mask, LogitCrop | str)]
    return logit_crops.collect([mask for _, mask in crops]), [i for i, _ in crops], encoded
