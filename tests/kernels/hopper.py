"""What the tests of CUDA C++ kernels share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samfast.device import cuda_programs

HALVES = (torch.bfloat16, torch.float16)
HOPPER = (
    torch.cuda.is_available()
    and torch.cuda.get_device_capability() == cuda_programs.HOPPER
    and cuda_programs.bindings() is not None
)
on_hopper = pytest.mark.skipif(not HOPPER, reason="the kernel is for Hopper GPUs")


def relative(a: Tensor, b: Tensor) -> float:
    """The error of a against b."""
    return float((a.double() - b.double()).norm() / b.double().norm())
