"""What the kernel of `samfast.masks.kernels.postprocess_tiles` computes, in plain torch; also what
runs on a CPU.

A few masks at a time, since their float logits are many times what is asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samfast.masks import bit_masks, boxes, stability, upscale
from samfast.masks.measures import Measures, Upscaled
from samfast.masks.resize_geometry import ResizeGeometry


def tiles(
    low_res: Tensor,
    frame: ResizeGeometry,
    threshold: float,
    *,
    offset: float | None = None,
    masks: bool = False,
    pack: bool = False,
    wanted: Tensor | None = None,
    at_a_time: int | None = None,
) -> Upscaled:
    """As `samfast.masks.kernels.postprocess_tiles.launch`; at_a_time: masks in float32 at once,
    None as `upscale` has it.

    With `wanted`, waits for a GPU, to learn how many there are.
    """
    if wanted is not None:
        chosen = wanted.nonzero()[:, 0]
        asked: dict[str, Any] = {
            "offset": offset,
            "masks": masks,
            "pack": pack,
            "at_a_time": at_a_time,
        }
        return _scattered(tiles(low_res[chosen], frame, threshold, **asked), chosen, len(low_res))
    count, device, size = len(low_res), low_res.device, frame.original_size
    step = at_a_time or upscale.at_a_time(size, frame.side, device)
    made = torch.empty((count, *size), dtype=torch.bool, device=device) if masks else None
    words = None
    if pack:
        words = torch.empty(
            (count, size[1], bit_masks.words(size[0])), dtype=torch.int32, device=device
        )
    parts = [torch.zeros((0, 7), dtype=torch.int32, device=device)]
    for start in range(0, count, step):
        chunk = slice(start, start + step)
        logits = upscale.logits(low_res[chunk, None], frame.input_size, size, frame.side)[:, 0]
        own = logits > threshold if made is None else torch.gt(logits, threshold, out=made[chunk])
        if words is not None:
            words[chunk] = bit_masks.pack(own)
        if offset is not None:
            parts.append(_measure(logits, own, threshold, offset))
    return Upscaled(None if offset is None else Measures(torch.cat(parts)), made, words)


def _scattered(made: Upscaled, chosen: Tensor, count: int) -> Upscaled:
    """The results of some of so many masks at their places; zeros elsewhere."""

    def put(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return values.new_zeros((count, *values.shape[1:])).index_copy_(0, chosen, values)

    table = put(None if made.measures is None else made.measures.table)
    return Upscaled(None if table is None else Measures(table), put(made.masks), put(made.packed))


def _measure(logits: Tensor, masks: Tensor, threshold: float, offset: float) -> Tensor:
    """The table of `samfast.masks.measures.Measures`."""
    counts = (
        stability.areas(masks),
        stability.areas(logits > threshold + offset),
        stability.areas(logits > threshold - offset),
    )
    return torch.cat([torch.stack(counts, dim=1), boxes.from_masks(masks)], dim=1).to(torch.int32)
