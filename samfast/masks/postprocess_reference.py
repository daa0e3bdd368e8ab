"""The computation of `samfast.masks.kernels.postprocess_tiles` in plain torch, which CPUs run.

Float logits take many times the memory of the results, so a few masks are done at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.masks import bit_masks, boxes, stability, upscale
from samfast.masks.measures import Postprocessed
from samfast.masks.resize_geometry import ResizeGeometry


def tiles(
    low_res: Tensor,
    geometry: ResizeGeometry,
    threshold: float,
    *,
    offset: float | None = None,
    masks: bool = False,
    pack: bool = False,
    wanted: Tensor | None = None,
) -> Postprocessed:
    """See `samfast.masks.measures.Postprocess`; waits for a GPU to count the `wanted` masks."""
    if wanted is not None:
        chosen = wanted.nonzero()[:, 0]
        some = tiles(low_res[chosen], geometry, threshold, offset=offset, masks=masks, pack=pack)
        return _scatter(some, chosen, len(low_res))
    count, device, size = len(low_res), low_res.device, geometry.original_size
    step = upscale.masks_per_chunk(size, geometry.side, device)
    out = torch.empty((count, *size), dtype=torch.bool, device=device) if masks else None
    packed = None
    if pack:
        shape = count, size[1], bit_masks.words(size[0])
        packed = torch.empty(shape, dtype=torch.int32, device=device)
    tables = [torch.zeros((0, 7), dtype=torch.int32, device=device)]
    for start in range(0, count, step):
        chunk = slice(start, start + step)
        logits = upscale.logits(low_res[chunk, None], geometry.input_size, size, geometry.side)
        logits = logits[:, 0]
        is_set = logits > threshold if out is None else torch.gt(logits, threshold, out=out[chunk])
        if packed is not None:
            packed[chunk] = bit_masks.pack(is_set)
        if offset is not None:
            tables.append(_measure(logits, is_set, threshold, offset))
    return Postprocessed(None if offset is None else torch.cat(tables), out, packed)


def _scatter(some: Postprocessed, chosen: Tensor, count: int) -> Postprocessed:
    """The results of the chosen masks at their places among `count`, zeros elsewhere."""

    def put(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return values.new_zeros((count, *values.shape[1:])).index_copy_(0, chosen, values)

    return Postprocessed(put(some.measures), put(some.masks), put(some.packed))


def _measure(logits: Tensor, masks: Tensor, threshold: float, offset: float) -> Tensor:
    """The table of `samfast.masks.measures`."""
    counts = (
        stability.areas(masks),
        stability.areas(logits > threshold + offset),
        stability.areas(logits > threshold - offset),
    )
    return torch.cat([torch.stack(counts, dim=1), boxes.from_masks(masks)], dim=1).to(torch.int32)
