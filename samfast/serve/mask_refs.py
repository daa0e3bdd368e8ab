"""The low-resolution masks of earlier answers, by the names under which callers refer to them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from samfast.serve.problems import ProblemError


@dataclass(eq=False)
class _Kept:
    """Masks that are kept together.

    images  of each row, None once the image is removed
    logits  (rows, M, 256, 256)
    """

    images: list[str | None]
    logits: Tensor


class MaskRefs:
    """Low-resolution logits of the latest answers, within a number of bytes.

    Mask number k of row r of the batch `name` is `name-r.k`. They stay on the device that they were
    made on: those of a batch on a GPU together, as they came, and on a CPU each row by itself.
    Safe to use from several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        # A batch by its name, a row that is kept by itself by "name-r"; least recently used first.
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, name: str, images: Sequence[str], logits: Tensor) -> None:
        """Keep the logits (rows, M, 256, 256) of a batch whose rows are of these images, and drop
        the oldest if they are too many.
        """
        if logits.is_cpu:
            # Batches of many sizes, of which some rows are used and kept longer, scatter the
            # system's memory, and the process grows for hours. PyTorch's memory of a GPU does not,
            # and a copy there costs more than all else that is done for a row.
            for row, (image, each) in enumerate(zip(images, logits, strict=True)):
                self._put(f"{name}-{row}", _Kept([image], each.clone()[None]))
        else:
            self._put(name, _Kept(list(images), logits))

    def _put(self, key: str, kept: _Kept) -> None:
        with self._lock:
            self._kept[key] = kept
            self._bytes += kept.logits.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._kept.popitem(last=False)[1].logits.nbytes

    def get(self, ref: str, image_id: str) -> Tensor:
        """A mask's logits (1, 256, 256); ProblemError if they are of another image, or gone."""
        row, _, number = ref.rpartition(".")
        with self._lock:
            kept_at = self._find(row)
            if (
                kept_at is None
                or kept_at[1].images[kept_at[2]] != image_id
                or number not in map(str, range(kept_at[1].logits.shape[1]))
            ):
                raise ProblemError(
                    404,
                    "mask_not_found",
                    f"mask {ref!r} is not among the latest answers for this image; ask again "
                    "without it",
                )
            key, kept, place = kept_at
            self._kept.move_to_end(key)
        mask = int(number)
        return kept.logits[place, mask : mask + 1]

    def _find(self, row: str) -> tuple[str, _Kept, int] | None:
        """What keeps a row, its key, and the row's place in it. Call it under the lock."""
        kept = self._kept.get(row)
        if kept is not None and "-" in row:  # not the name of a batch
            return row, kept, 0
        name, _, number = row.rpartition("-")
        kept = self._kept.get(name)
        if kept is None or number not in map(str, range(len(kept.images))):
            return None
        return name, kept, int(number)

    def detach(self, ref: str) -> None:
        """Keep the logits of a mask's row by themselves from now on. Call it on the device's
        thread.

        Those of which one is used are kept longer than the others of their batch.
        """
        row = ref.rpartition(".")[0]
        with self._lock:
            kept_at = self._find(row)
        if kept_at is None or kept_at[0] == row:
            return
        _, kept, place = kept_at
        image = kept.images[place]
        if image is not None:
            self._put(row, _Kept([image], kept.logits[place : place + 1].clone()))

    @property
    def bytes(self) -> int:
        """Of all that are kept."""
        return self._bytes

    def remove(self, image_id: str) -> None:
        """Forget the masks of an image."""
        with self._lock:
            for key, kept in list(self._kept.items()):
                kept.images = [None if each == image_id else each for each in kept.images]
                if not any(kept.images):
                    self._bytes -= self._kept.pop(key).logits.nbytes
