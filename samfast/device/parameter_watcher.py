"""Sees cheaply whether the tensors of a module are still the same."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

Marks = tuple[tuple[int, ...], tuple[int, ...]]


class ParameterWatcher:
    """Sees whether a module's tensors are still the same, in microseconds: that is asked at every
    call.

    The walk through the modules is remembered, and each time compared, entry by entry, with what is
    there now. It keeps a parameter that was replaced alive until then, so that nothing else can
    have come to lie in its place.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._walk = _Walk(module)

    @property
    def tensors(self) -> list[Tensor]:
        """All parameters and buffers as they are now."""
        walk = self._walk
        if not walk.holds():
            walk = self._walk = _Walk(self.module)
        return walk.tensors

    def places(self) -> tuple[int, ...]:
        """Where each tensor lies: equal while none was replaced or moved."""
        return tuple(map(Tensor.data_ptr, self.tensors))

    def marks(self) -> Marks:
        """Where each tensor lies and how often it was written to in place: equal while nothing
        changed.
        """
        tensors = self.tensors
        return tuple(map(Tensor.data_ptr, tensors)), tuple(map(_version, tensors))


class _Walk:
    """What a module and its children hold, and the dictionaries in which they do."""

    def __init__(self, module: nn.Module) -> None:
        holders: list[dict[str, Any]] = []
        stack = [module]
        while stack:
            current = stack.pop()
            holders += (current._parameters, current._buffers, current._modules)
            stack += [child for child in current._modules.values() if child is not None]
        self._empty = [own for own in holders if not own]
        self._holders = [own for own in holders if own]
        self._held = [*chain.from_iterable(own.values() for own in self._holders), _END]
        self.tensors = [own for own in self._held if isinstance(own, Tensor)]

    def holds(self) -> bool:
        """Whether each dictionary holds what it did."""
        # Loops of the interpreter's own: a few nanoseconds an entry.
        now = chain(chain.from_iterable(map(dict.values, self._holders)), (_END,))
        return not any(self._empty) and all(map(is_, now, self._held))


_END = object()
"""After the last one: what has become longer or shorter ends elsewhere."""

_version = attrgetter("_version")
