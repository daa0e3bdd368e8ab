"""The size of chunks with which automatic mask generation stays within a stated memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from samfast.automatic_masks.point_model import PointModel
from samfast.errors import InputError
from samfast.masks import upscale
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.types import Size

FREE_SHARE = 0.5
"""Share of a GPU's free memory that is used by default."""

CPU_MEMORY = 1 << 30
"""Bytes used on a CPU by default."""

MAX_MASKS = 24
MAX_PACKED_MASKS = 128
MAX_WAITING_BYTES = 96 << 20
"""Most masks upscaled at a time, most masks packed at a time, and most bytes of waiting logits.

More masks take memory and save little time. The candidates of a photo's 32 x 32 points mostly fit
into the waiting bytes, so that duplicates are not encoded.
"""

MAX_BATCHES_PER_CALL = 4
"""Batches of the original's size decoded together where an object takes little memory beside its
output; the host's work for a call is then done once."""

DECODER_BYTES = 32 << 20
OBJECT_BYTES = 24 << 20
"""Peak memory of the decoder, and more for each object, at a side of 1024 in float32.

16 and 20 MiB were counted on a CPU, tensor by tensor; the rest allows for a GPU's libraries.
"""


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes of chunks that fit into the memory.

    points          decoded at a time
    masks           upscaled and encoded at a time
    packed_masks    encoded at a time where a kernel packs them, a bit a pixel
    waiting_bytes   low-resolution logits that wait until duplicates are removed; 0: masks are
                    encoded at once, before the next points are decoded
    encoding_bytes  memory for computing and writing runs
    """

    points: int
    masks: int
    packed_masks: int
    waiting_bytes: int
    encoding_bytes: int


def available_memory(max_memory: int | None, device: torch.device) -> int:
    """The stated bytes, or by default 1 GiB on a CPU and a share of the free memory on a GPU."""
    if max_memory is not None:
        return max_memory
    if device.type != "cuda":
        return CPU_MEMORY
    free, _ = torch.cuda.mem_get_info(device)
    stats = torch.cuda.memory_stats_as_nested_dict(device)  # one call, which builds a large dict
    cached = _current(stats, "reserved_bytes") - _current(stats, "allocated_bytes")
    return int(FREE_SHARE * (free + cached))


def _current(stats: dict[str, Any], name: str) -> int:
    """A figure of the allocator, 0 on a device that was not used yet."""
    return int(stats.get(name, {}).get("all", {}).get("current", 0))


def points_per_call(points_per_batch: int, model: PointModel[Any, Any]) -> int:
    """Points decoded together where memory suffices; with low_memory up to the decoder's limit."""
    if not model.low_memory:
        return points_per_batch
    several = MAX_BATCHES_PER_CALL * points_per_batch
    limit = several if model.objects_per_call is None else min(several, model.objects_per_call)
    return max(points_per_batch, limit)


def plan_memory(
    max_memory: int | None,
    total: int,
    geometry: ResizeGeometry,
    image_size: Size,
    model: PointModel[Any, Any],
) -> MemoryPlan:
    """The plan for a crop: half of the memory decodes, and half of the rest encodes.

    On a GPU the last quarter holds logits that wait. There the outputs of two calls of the decoder
    exist at once, and a copy of one's candidates, since an output is filtered during the next call.

    max_memory            as stated; None: at least one mask is always tried
    total                 bytes, `available_memory` of it
    geometry, image_size  of the crop, and of the image in which its masks are placed

    Raises InputError if a stated memory does not suffice for one mask.
    """
    on_cpu, per_call = model.device.type == "cpu", model.objects_per_call
    scale = (geometry.side / 1024) ** 2
    decoder, per_object = int(scale * DECODER_BYTES), int(scale * OBJECT_BYTES)
    output = (1 if on_cpu else 3) * 3 * 4 * (geometry.side // 4) ** 2  # three masks' logits
    mask = mask_bytes(geometry, image_size)
    least = max(2 * (decoder + per_object + output), 4 * mask)
    if max_memory is not None and total < least:
        height, width = image_size
        raise InputError(
            f"max_memory={max_memory} does not suffice for one mask of an image of {height} x "
            f"{width} pixels; give at least {least} bytes"
        )
    points = (total // 2 - decoder) // (per_object + output)
    if per_call is not None and points > per_call:
        points = (total // 2 - decoder - per_call * per_object) // output
    chunk = upscale.masks_per_chunk(geometry.original_size, geometry.side, model.device)
    return MemoryPlan(
        points=max(1, points),
        masks=max(1, min(total // 4 // mask, chunk, MAX_MASKS)),
        packed_masks=max(1, min(total // 4 // packed_bytes(geometry), MAX_PACKED_MASKS)),
        waiting_bytes=0 if on_cpu else min(total // 4, MAX_WAITING_BYTES),
        encoding_bytes=total // 4,
    )


def mask_bytes(geometry: ResizeGeometry, image_size: Size) -> int:
    """Most memory of one mask while it is upscaled and its runs are computed.

    Float logits of the square and of the crop, and the masks as bool made of them.
    """
    height, width = geometry.original_size
    return 4 * (geometry.side**2 + height * width) + 4 * image_size[0] * image_size[1]


def packed_bytes(geometry: ResizeGeometry) -> int:
    """Most memory of one mask while it is packed and its changes are counted.

    Low-resolution logits, and about eight copies of its words, in which a pixel is a bit.
    """
    height, width = geometry.original_size
    words = -(-(height + 1) // 32) * (width + 1)
    return 4 * (geometry.side // 4) ** 2 + 8 * 4 * words
