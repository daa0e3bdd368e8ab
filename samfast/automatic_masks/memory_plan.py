"""How much is done at a time, so that segmenting everything stays within a stated memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from samfast.errors import InputError
from samfast.masks import upscale
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.types import Size

SHARE = 0.5
"""Of a GPU's free memory, what is taken if nothing else is said."""

CPU_MEMORY = 1 << 30

MASKS = 24
HELD = 96 << 20
PACKED = 128
"""Masks upscaled at a time, bytes of logits that wait, and masks packed at a time, at most.

More masks take memory and save little time, and what a photo's 32 x 32 points leave to wait mostly
fits, so that no duplicates are encoded.
"""

WIDER = 4
"""How many of the original's batches of points are decoded together where an object takes little
beside its answer.

What the host does for each is then done once.
"""

DECODER = 32 << 20
OBJECT = 24 << 20
"""Bytes that the decoder takes at its peak, and for each object more, at a side of 1024 in float32.

16 and 20 MiB were counted on a CPU, tensor by tensor; the rest is for what a GPU's libraries take
beside.
"""


@dataclass(frozen=True)
class Plan:
    """What fits.

    objects   decoded at a time
    masks     upscaled and encoded at a time
    packed    encoded at a time where a kernel packs them, whose pixels are bits
    held      bytes of low-resolution logits that wait until duplicates are removed; 0: masks are
              encoded at once, and nothing is decoded before that
    encoding  bytes that finding runs and writing them may take
    """

    objects: int
    masks: int
    packed: int
    held: int
    encoding: int


def available(max_memory: int | None, device: torch.device) -> int:
    """The bytes that may be taken: as stated, or by default a share of what is free, and on a CPU 1
    GiB.
    """
    if max_memory is not None:
        return max_memory
    if device.type != "cuda":
        return CPU_MEMORY
    free, _ = torch.cuda.mem_get_info(device)
    # Asked once, as each asking makes a dictionary of hundreds of figures.
    known = torch.cuda.memory_stats_as_nested_dict(device)
    unused = _current(known, "reserved_bytes") - _current(
        known, "allocated_bytes"
    )  # PyTorch's to give again
    return int(SHARE * (free + unused))


def _current(known: dict[str, Any], name: str) -> int:
    """Of a device that nobody has used yet nothing is known."""
    return int(known.get(name, {}).get("all", {}).get("current", 0))


def at_a_time(points_per_batch: int, low_memory: bool, objects_at_a_time: int | None) -> int:
    """Points decoded together, where memory suffices, if the original would take so many.

    lean               whether an object takes the decoder little beside its answer; else they are
                       as many
    objects_at_a_time  as `plan` has it: more than the decoder takes in one go gain nothing, unless
                       they are asked for
    """
    if not low_memory:
        return points_per_batch
    wide = WIDER * points_per_batch
    return max(
        points_per_batch, wide if objects_at_a_time is None else min(wide, objects_at_a_time)
    )


def plan(
    max_memory: int | None,
    total: int,
    frame: ResizeGeometry,
    image_size: Size,
    device: torch.device,
    objects_at_a_time: int | None,
) -> Plan:
    """Half of the memory decodes; of the rest half waits, but on a CPU, and half encodes.

    On a GPU the answers of two calls of the decoder are there at once, and a copy of what passes of
    one: what it says is looked at during the next.

    max_memory         as stated, None if it was not: then at least one mask is always tried
    total              `available` of it
    frame, image_size  the crop, and the size of the image that its masks are placed in
    objects_at_a_time  the decoder never takes more in one call of its own; None: it takes what it
                       is given

    Raises InputError if a stated memory does not suffice for one mask.
    """
    scale = (frame.side / 1024) ** 2
    decoder, each = int(scale * DECODER), int(scale * OBJECT)
    # What remains of an object: three masks' logits.
    answer = (1 if device.type == "cpu" else 3) * 3 * 4 * (frame.side // 4) ** 2
    mask = mask_bytes(frame, image_size)
    least = max(2 * (decoder + each + answer), 4 * mask)
    if max_memory is not None and total < least:
        height, width = image_size
        raise InputError(
            f"max_memory={max_memory} does not suffice for one mask of an image of {height} x "
            f"{width} pixels; "
            f"give at least {least} bytes"
        )
    objects = (total // 2 - decoder) // (each + answer)
    if objects_at_a_time is not None and objects > objects_at_a_time:
        objects = (total // 2 - decoder - objects_at_a_time * each) // answer
    masks = min(
        total // 4 // mask, upscale.at_a_time(frame.original_size, frame.side, device), MASKS
    )
    packed = min(total // 4 // packed_bytes(frame), PACKED)
    held = 0 if device.type == "cpu" else min(total // 4, HELD)
    return Plan(max(1, objects), max(1, masks), max(1, packed), held, total // 4)


def mask_bytes(frame: ResizeGeometry, image_size: Size) -> int:
    """What one mask takes at most while it is upscaled and its runs are found, in bytes.

    Float logits of the square and of the crop, and what is made of them as bool.
    """
    height, width = frame.original_size
    return 4 * (frame.side**2 + height * width) + 4 * image_size[0] * image_size[1]


def packed_bytes(frame: ResizeGeometry) -> int:
    """What one mask takes at most while it is packed and its changes are found, in bytes.

    Low-resolution logits, and of its words some eight copies, in which a pixel is a bit.
    """
    height, width = frame.original_size
    words = -(-(height + 1) // 32) * (width + 1)
    return 4 * (frame.side // 4) ** 2 + 8 * 4 * words
