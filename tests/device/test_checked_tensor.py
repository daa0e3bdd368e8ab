"""A deferred check comes before the values of a tensor reach the host, and not before that."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from samfast.device.checked_tensor import CheckedTensor, checked, plain
from samfast.errors import NumericsError

Read = Callable[[Tensor], object]

READS: dict[str, Read] = {
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "np.asarray": lambda x: np.asarray(x),
    "tolist": lambda x: x.tolist(),
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "int": lambda x: int(x.sum()),
    "format": lambda x: f"{x.sum()}",
    "repr": lambda x: repr(x),
    "equal": lambda x: torch.equal(x, x),
    "in": lambda x: 1 in x,
    "pickle": lambda x: pickle.dumps(x),
    "torch.save": lambda x: torch.save(x, io.BytesIO()),
    "deepcopy": lambda x: copy.deepcopy(x).cpu(),
    "a row": lambda x: x[0].numpy(),
    "a row of a loop": lambda x: [row.numpy() for row in x],
    "a part": lambda x: x.unbind(1)[0].numpy(),
    "a product": lambda x: (x.float() * 2).tolist(),
    "the second result": lambda x: x.float().max(dim=1).indices.tolist(),
    "together with others": lambda x: torch.cat([torch.ones(2, 2, dtype=torch.bool), x]).tolist(),
    "another device": lambda x: x.to("meta"),
    "a copy on another device": lambda x: torch.empty(2, 2, device="meta").copy_(x),
}


def fail() -> None:
    raise NumericsError("image 0, object 0: the answer holds NaN")


@pytest.fixture
def values() -> Tensor:
    return torch.tensor([[True, False], [False, True]])


@pytest.mark.parametrize("name", READS)
def test_every_read_calls_the_check(values: Tensor, name: str) -> None:
    with pytest.raises(NumericsError):
        READS[name](checked(values, fail))


@pytest.mark.parametrize("name", [name for name in READS if "other" not in name])
def test_reads_of_a_sound_answer_are_those_of_the_tensor(values: Tensor, name: str) -> None:
    calls: list[int] = []
    got = READS[name](checked(values, lambda: calls.append(1)))
    if name not in ("repr", "pickle"):
        assert np.array_equal(np.asarray(got), np.asarray(READS[name](values)))
    assert name in ("pickle", "torch.save") or calls


def test_operations_on_the_device_do_not_call_it() -> None:
    x = checked(torch.empty(2, 3, 4, device="meta"), fail)
    assert (x.shape, len(x), x.device.type, x.dtype) == ((2, 3, 4), 2, "meta", torch.float32)
    for each in (x[0], x > 0, x.sum(), x.float(), torch.where(x > 0, 1.0, 0.0), x.clone()):
        assert isinstance(each, CheckedTensor) and each.checks == (fail,)


def test_checks_of_several_answers_are_all_kept() -> None:
    calls: list[str] = []
    a, b = (checked(torch.ones(1), partial(calls.append, name)) for name in "ab")
    assert torch.cat([a, b, a]).tolist() == [1, 1, 1]
    assert calls == ["a", "b"]


def test_a_plain_tensor_shares_memory_and_has_no_check(values: Tensor) -> None:
    guarded = checked(values, fail)
    assert type(plain(guarded)) is Tensor
    assert plain(guarded).data_ptr() == guarded.data_ptr() == values.data_ptr()
    assert plain(guarded).tolist() == values.tolist()


def test_what_is_pickled_is_a_plain_tensor(values: Tensor) -> None:
    back = pickle.loads(pickle.dumps(checked(values, lambda: None)))
    assert type(back) is Tensor and torch.equal(back, values)


def test_a_compiled_function_carries_the_check_too() -> None:
    compiled = torch.compile(lambda x: (x[0] * 2 + 1).sum(), backend="eager")
    answer = compiled(checked(torch.ones(2, 3), fail))
    with pytest.raises(NumericsError):
        answer.item()


def test_a_view_s_base_is_the_tensor_itself() -> None:
    values = torch.ones(2, 3)
    assert checked(values, fail)[0]._base is values
