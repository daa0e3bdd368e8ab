"""The modes that models run in, whatever the caller's are, and left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch

from samfast.device.inference_modes import inference_modes

CPU = torch.device("cpu")

Modes = tuple[bool, bool, bool]


def modes() -> Modes:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


@contextmanager
def both(
    one: AbstractContextManager[object], other: AbstractContextManager[object]
) -> Iterator[None]:
    with one, other:
        yield


@pytest.mark.parametrize(
    "callers",
    [
        nullcontext,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: both(torch.no_grad(), torch.autocast("cpu", torch.bfloat16)),
        lambda: both(torch.no_grad(), torch.inference_mode(False)),
    ],
)
def test_whatever_the_caller_s_modes_are(callers) -> None:
    with callers():
        before = modes()
        with inference_modes(CPU):
            assert modes() == (False, False, False)
            with inference_modes(CPU):
                assert modes() == (False, False, False)
            assert modes() == (False, False, False)
            assert not torch.ones(2, requires_grad=True).sum().requires_grad
        assert modes() == before
    assert modes() == (True, False, False)


def test_they_are_left_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), inference_modes(CPU), inference_modes(CPU):
        raise ZeroDivisionError
    assert modes() == (True, False, False)
