"""Tensors on a device that raise their deferred check when their values are read on the host."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import get_default_nowrap_functions
from torch.utils import _pytree as pytree

from samfast.types import Check

_READS = (
    "__array__ __bool__ __complex__ __contains__ __float__ __format__ __index__ __int__ __repr__ "
    "allclose cpu equal is_nonzero item numpy tolist"
)
HOST_READS: frozenset[Callable[..., Any]] = frozenset(
    [
        *(getattr(Tensor, name) for name in _READS.split()),
        *(torch.allclose, torch.equal, torch.is_nonzero),
    ]
)
"""Functions that give values of a tensor to the host. Any function may copy one to it as well, as
`Tensor.to` does, which its result shows."""

_OF_AUTOGRAD = get_default_nowrap_functions()


class CheckedTensor(Tensor):
    """A tensor on a device, of which a deferred check may find that it holds no answer.

    What is computed from it on its device carries the check on, and nothing waits. The check is
    called, and raises, where a value reaches the host: by `cpu`, `item`, `numpy`, a copy, a
    comparison as bool, printing, pickling.
    """

    checks: tuple[Check, ...] = ()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [*_checked_among(args), *_checked_among(kwargs.values())]
        checks = tuple(dict.fromkeys(check for each in given for check in each.checks))
        if func in HOST_READS:
            _call(checks)
            args, kwargs = pytree.tree_map_only(cls, plain, (args, kwargs))
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            if not isinstance(result, Tensor | tuple | list) or func in _OF_AUTOGRAD:
                return result
            here = given[0].device

            def carried(value: Tensor) -> Tensor:
                if value.device == here:
                    return checked(value, *checks)
                _call(checks)  # a copy on another device
                return value

            return pytree.tree_map_only(Tensor, carried, result)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.unbind(0))

    def __reduce_ex__(self, protocol: Any) -> Any:
        _call(self.checks)
        return plain(self).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return checked(copy.deepcopy(plain(self), memo), *self.checks)


def checked(values: Tensor, *checks: Check) -> Tensor:
    """The same tensor, no copy, with the checks in the way of the host."""
    with torch._C.DisableTorchFunctionSubclass():
        out = values.as_subclass(CheckedTensor)
    out.checks = checks
    return out


def plain(values: Tensor) -> Tensor:
    """The same tensor, no copy, without checks: for code that passes them on by other means."""
    with torch._C.DisableTorchFunctionSubclass():
        return values.as_subclass(Tensor)


def _checked_among(arguments: Iterable[Any]) -> Iterator[CheckedTensor]:
    """Those among arguments, lists and tuples included, as `torch.cat` takes them."""
    for each in arguments:
        if isinstance(each, CheckedTensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _checked_among(each)


def _call(checks: Iterable[Check]) -> None:
    for check in checks:
        check()
