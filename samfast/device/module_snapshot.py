"""Notice cheaply whether modules of a model were replaced or hooked."""

from __future__ import annotations

from itertools import chain
from operator import is_

from torch import nn


class ModuleSnapshot:
    """The modules below some roots, to be compared with those of a later call in microseconds.

    >>> snapshot = ModuleSnapshot(sam.prompt_encoder, sam.mask_decoder)
    >>> sam.mask_decoder.transformer.layers[0] = MyLayer()
    >>> snapshot.matches(sam.prompt_encoder, sam.mask_decoder)  # False
    """

    def __init__(self, *roots: nn.Module) -> None:
        self._roots = roots
        self._modules = [module for root in roots for module in root.modules()]
        self._classes = [*map(type, self._modules)]
        self._holders = [module._modules for module in self._modules]
        self._children = self._current_children()
        self._hooks = [
            hooks
            for module in self._modules
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ]

    def matches(self, *roots: nn.Module) -> bool:
        """Whether no module, class or `forward` was replaced since, and no hook is registered."""
        children = self._current_children()
        return (
            all(map(is_, roots, self._roots))
            and len(children) == len(self._children)
            and all(map(is_, children, self._children))
            and all(map(is_, map(type, self._modules), self._classes))
            and not any(self._hooks)
            and not any("forward" in vars(module) for module in self._modules)
        )

    def _current_children(self) -> list[nn.Module | None]:
        return [*chain.from_iterable(map(dict.values, self._holders))]
