"""The low-resolution masks of earlier answers, by the names under which callers refer to them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor

from samfast.serve.problems import ProblemError


class MaskRefs:
    """Low-resolution logits (1, 256, 256), the latest of them, within a number of bytes.

    They stay on the device that they were made on. Safe to use from several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._masks: OrderedDict[str, tuple[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, image_id: str, masks: Iterable[tuple[str, Tensor]]) -> None:
        """Keep the logits of masks of that image by their names, and drop the oldest if they are
        too many.
        """
        with self._lock:
            for ref, logits in masks:
                self._masks[ref] = image_id, logits
                self._bytes += logits.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._masks.popitem(last=False)[1][1].nbytes

    def get(self, ref: str, image_id: str) -> Tensor:
        """The logits; ProblemError if they are of another image, or gone."""
        with self._lock:
            entry = self._masks.get(ref)
            if entry is None or entry[0] != image_id:
                raise ProblemError(
                    404,
                    "mask_not_found",
                    f"mask {ref!r} is not among the latest answers for this image; ask again "
                    "without it",
                )
            self._masks.move_to_end(ref)
            return entry[1]

    def detach(self, ref: str) -> None:
        """Keep the logits by themselves from now on. Call it on the device's thread.

        On a GPU a mask is a part of its batch's memory, which it holds as long as it is kept; one
        that is used is kept longer than the others.
        """
        with self._lock:
            entry = self._masks.get(ref)
        if entry is None or entry[1].untyped_storage().nbytes() == entry[1].nbytes:
            return
        alone = entry[0], entry[1].clone()
        with self._lock:
            if ref in self._masks:
                self._masks[ref] = alone

    @property
    def bytes(self) -> int:
        """Of all that are kept."""
        return self._bytes

    def remove(self, image_id: str) -> None:
        """Forget the masks of an image."""
        with self._lock:
            for ref in [ref for ref, (owner, _) in self._masks.items() if owner == image_id]:
                self._bytes -= self._masks.pop(ref)[1].nbytes
