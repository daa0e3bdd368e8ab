"""Notice cheaply whether modules of a model were replaced, hooked or given other methods."""

from __future__ import annotations

import inspect
from itertools import chain
from operator import is_

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


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
        methods = {kind: _methods(kind) for kind in set(self._classes)}
        self._attributes = [(vars(module), methods[type(module)]) for module in self._modules]
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
        """Whether no module, class or method was replaced since, and none is hooked or compiled."""
        children = self._current_children()
        return (
            all(map(is_, roots, self._roots))
            and len(children) == len(self._children)
            and all(map(is_, children, self._children))
            and all(map(is_, map(type, self._modules), self._classes))
            and not any(self._hooks)
            and not _has_any_global_hook()  # type: ignore[no-untyped-call]
            and all(methods.isdisjoint(attributes) for attributes, methods in self._attributes)
            and not any(attributes.get(_COMPILED) for attributes, _ in self._attributes)
        )

    def _current_children(self) -> list[nn.Module | None]:
        return [*chain.from_iterable(map(dict.values, self._holders))]


_COMPILED = "_compiled_call_impl"
"""Where `nn.Module.compile` keeps the compiled code."""


def _methods(kind: type[nn.Module]) -> frozenset[str]:
    """The methods of a class of modules beside those of every module."""
    names = (name for base in kind.__mro__ if base is not nn.Module for name in vars(base))
    written = (name for name in names if inspect.isfunction(inspect.getattr_static(kind, name)))
    return frozenset(written) - (frozenset(vars(nn.Module)) - {"forward"})
