"""The masks of clicks that were decoded together, on their way to the process that writes JSON.

Imports no torch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from samfast.serve.rle_json import mask_json, objects_json

_HEAD = struct.Struct("=cIII")


class ClickedMasks(NamedTuple):
    """The masks of some clicks in columns. What is text of JSON in the end is numbers here: the
    process that has the device has less time than the one that gets this.

    name        of the batch: mask k of row r has the `ref` "name-r.k"
    masks_each  masks of an object
    numbers     of the clicks
    objects     of each click, how many it has
    rows        of each object in its batch
    sizes       of each object's image: height, width, flat
    ious        float32 in the machine's order, a number a mask
    areas, boxes  int32 likewise, one and four numbers a mask
    texts       COCO's, of each mask
    """

    name: str
    masks_each: int
    numbers: Sequence[int]
    objects: Sequence[int]
    rows: Sequence[int]
    sizes: Sequence[int]
    ious: bytes
    areas: bytes
    boxes: bytes
    texts: Sequence[str]

    def to_bytes(self, kind: bytes) -> bytes:
        """As a frame's content, which begins with that byte."""
        counts = len(self.numbers), len(self.rows), self.masks_each
        integers = (*self.numbers, *self.objects, *self.rows, *self.sizes)
        return b"".join(
            (
                _HEAD.pack(kind, *counts),
                struct.pack(f"={len(integers)}I", *integers),
                self.ious,
                self.areas,
                self.boxes,
                "\n".join((self.name, *self.texts)).encode("ascii"),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> ClickedMasks:
        """From a frame's content."""
        _, clicks, rows, masks_each = _HEAD.unpack_from(data)
        place = _HEAD.size

        def part(count: int) -> bytes:
            """The next numbers, of four bytes each."""
            nonlocal place
            place += 4 * count
            return data[place - 4 * count : place]

        numbers, objects, in_batch, sizes = (
            _numbers("I", part(count)) for count in (clicks, clicks, rows, 2 * rows)
        )
        ious, areas, boxes = (part(count * rows * masks_each) for count in (1, 1, 4))
        name, *texts = data[place:].decode("ascii").split("\n")
        return cls(name, masks_each, numbers, objects, in_batch, sizes, ious, areas, boxes, texts)

    def answers(self) -> Iterator[tuple[int, bytes]]:
        """Each click's number and the JSON that answers it."""
        each, sizes, texts = self.masks_each, self.sizes, self.texts
        ious, areas = _numbers("f", self.ious), _numbers("i", self.areas)
        boxes = _numbers("i", self.boxes)

        def masks(place: int) -> Iterator[str]:
            size, row = sizes[2 * place : 2 * place + 2], self.rows[place]
            for k, i in enumerate(range(place * each, (place + 1) * each)):
                ref, box = f"{self.name}-{row}.{k}", boxes[4 * i : 4 * i + 4]
                yield mask_json(size, texts[i], ious[i], areas[i], box, ref)

        first = 0
        for number, count in zip(self.numbers, self.objects, strict=True):
            yield number, objects_json(map(masks, range(first, first + count)))
            first += count


def _numbers(kind: str, data: bytes) -> tuple[Any, ...]:
    """The numbers of four bytes each."""
    return struct.unpack(f"={len(data) // 4}{kind}", data)
