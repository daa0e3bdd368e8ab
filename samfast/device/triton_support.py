"""Whether Triton's kernels run on a device."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from samfast.errors import MissingExtraError

MIN_CAPABILITY = (8, 0)
"""Lowest compute capability that Triton supports."""


@cache
def triton_installed() -> bool:
    """Whether the triton package is installed."""
    return find_spec("triton") is not None


@cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on this device: triton is installed and supports the GPU."""
    if device.type != "cuda" or not triton_installed() or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def need_triton(feature: str) -> None:
    """Raise MissingExtraError, naming the feature that needs it, if triton cannot be imported."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"{feature} needs triton on a GPU, which cannot be imported ({error}): pip install "
            "triton"
        ) from error


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, as tests on a CPU do."""
    import triton

    return bool(triton.knobs.runtime.interpret)
