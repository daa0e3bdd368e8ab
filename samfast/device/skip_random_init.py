"""Making modules without drawing the random weights that a checkpoint replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RANDOM_FILLS: frozenset[Callable[..., Any]] = frozenset(
    (
        Tensor.uniform_,
        Tensor.normal_,
        torch.nn.init.uniform_,
        torch.nn.init.normal_,
        torch.nn.init.trunc_normal_,
        torch.nn.init.kaiming_uniform_,
        torch.nn.init.kaiming_normal_,
        torch.nn.init.xavier_uniform_,
        torch.nn.init.xavier_normal_,
    )
)
"""Functions that fill their first argument with random numbers and return it."""

_RANDOM_TENSORS: frozenset[Callable[..., Any]] = frozenset((torch.rand, torch.randn))
"""Functions that make a tensor of random numbers."""


class SkipRandomInit(TorchFunctionMode):
    """Within the block, random tensors are uninitialised memory, whose pages nothing touches.

    Constants, such as the ones and zeros of a norm, are written as ever. Unlike the device "meta",
    on which PyTorch draws random numbers by its compiler's decompositions, this imports nothing.

    >>> with torch.device("cpu"), SkipRandomInit():
    ...     linear = torch.nn.Linear(1024, 4096)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_FILLS:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func in _RANDOM_TENSORS else func)(*args, **kwargs)
