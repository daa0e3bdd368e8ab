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
        chosen, flat = wanted.nonzero()[:, 0], low_res.flatten(0, -3)
        some = tiles(flat[chosen], geometry, threshold, offset=offset, masks=masks, pack=pack)
        return _scatter(some, chosen, len(flat))
    # On one thread torch interpolates three channels by other arithmetic than one. The masks of an
    # object therefore stay its channels, as in the original.
    low_res = low_res[:, None] if low_res.ndim == 3 else low_res
    device, size, of_object = low_res.device, geometry.original_size, low_res.shape[1]
    count = len(low_res) * of_object
    step = max(1, upscale.masks_per_chunk(size, geometry.side, device) // of_object)
    out = torch.empty((count, *size), dtype=torch.bool, device=device) if masks else None
    packed = None
    if pack:
        shape = count, size[1], bit_masks.words(size[0])
        packed = torch.empty(shape, dtype=torch.int32, device=device)
    tables = [torch.zeros((0, 7), dtype=torch.int32, device=device)]
    for start in range(0, len(low_res), step):
        objects = low_res[start : start + step]
        logits = upscale.logits(objects, geometry.input_size, size, geometry.side).flatten(0, 1)
        chunk = slice(start * of_object, (start + step) * of_object)
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
