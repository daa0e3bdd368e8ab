"""The low-resolution masks of earlier answers, by the names under which callers refer to them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from samfast.serve.problems import ProblemError


class MaskRefs:
    """Low-resolution logits of the latest answers, within a number of bytes.

    Those of an object are kept together: mask number k of the object `name` is `name.k`. They stay
    on the device that they were made on. Safe to use from several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._objects: OrderedDict[str, tuple[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, image_id: str, objects: Mapping[str, Tensor]) -> None:
        """Keep the logits (M, 256, 256) of objects of that image by their names, and drop the
        oldest if they are too many.
        """
        with self._lock:
            for name, logits in objects.items():
                self._objects[name] = image_id, logits
                self._bytes += logits.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._objects.popitem(last=False)[1][1].nbytes

    def get(self, ref: str, image_id: str) -> Tensor:
        """A mask's logits (1, 256, 256); ProblemError if they are of another image, or gone."""
        name, _, number = ref.rpartition(".")
        with self._lock:
            entry = self._objects.get(name)
            if (
                entry is None
                or entry[0] != image_id
                or number not in map(str, range(len(entry[1])))
            ):
                raise ProblemError(
                    404,
                    "mask_not_found",
                    f"mask {ref!r} is not among the latest answers for this image; ask again "
                    "without it",
                )
            self._objects.move_to_end(name)
        place = int(number)
        return entry[1][place : place + 1]

    def detach(self, ref: str) -> None:
        """Keep the logits of a mask's object by themselves from now on. Call it on the device's
        thread.

        On a GPU they are a part of their batch's memory, which they hold as long as they are kept;
        those of which one is used are kept longer than the others.
        """
        name = ref.rpartition(".")[0]
        with self._lock:
            entry = self._objects.get(name)
        if entry is None or entry[1].untyped_storage().nbytes() == entry[1].nbytes:
            return
        alone = entry[0], entry[1].clone()
        with self._lock:
            if name in self._objects:
                self._objects[name] = alone

    @property
    def bytes(self) -> int:
        """Of all that are kept."""
        return self._bytes

    def remove(self, image_id: str) -> None:
        """Forget the masks of an image."""
        with self._lock:
            for name in [name for name, (owner, _) in self._objects.items() if owner == image_id]:
                self._bytes -= self._objects.pop(name)[1].nbytes
