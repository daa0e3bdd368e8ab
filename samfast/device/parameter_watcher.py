"""Detects changes to the tensors of a module in microseconds, for a check at every call."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

Snapshot = tuple[tuple[int, ...], tuple[int, ...]]
"""Addresses of a module's tensors, and their version counters."""


class ParameterWatcher:
    """Detects whether a module's tensors were replaced or written to.

    The traversal of the modules is cached and validated entry by entry at each use. The cache keeps
    a replaced parameter alive until then, so that no other tensor can take its address.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._traversal = _Traversal(module)

    @property
    def tensors(self) -> list[Tensor]:
        """All current parameters and buffers."""
        if not self._traversal.is_current():
            self._traversal = _Traversal(self.module)
        return self._traversal.tensors

    def addresses(self) -> tuple[int, ...]:
        """The address of each tensor: equal while none was replaced or moved."""
        return tuple(map(Tensor.data_ptr, self.tensors))

    def snapshot(self) -> Snapshot:
        """Addresses and version counters: equal while no tensor was replaced, moved or written to
        in place.
        """
        tensors = self.tensors
        return tuple(map(Tensor.data_ptr, tensors)), tuple(map(_version, tensors))


class _Traversal:
    """The tensors of a module and its children, and the dictionaries that hold them."""

    def __init__(self, module: nn.Module) -> None:
        dicts: list[dict[str, Any]] = []
        stack = [module]
        while stack:
            current = stack.pop()
            dicts += (current._parameters, current._buffers, current._modules)
            stack += [child for child in current._modules.values() if child is not None]
        self._empty = [entries for entries in dicts if not entries]
        self._filled = [entries for entries in dicts if entries]
        self._values = [*chain.from_iterable(map(dict.values, self._filled)), _END]
        self.tensors = [value for value in self._values if isinstance(value, Tensor)]

    def is_current(self) -> bool:
        """Whether every dictionary still holds the same objects."""
        # map and chain loop in C: a few nanoseconds an entry.
        values = chain(chain.from_iterable(map(dict.values, self._filled)), (_END,))
        return not any(self._empty) and all(map(is_, values, self._values))


_END = object()
"""Marks the end of the values, so that sequences of different lengths differ."""

_version = attrgetter("_version")
