"""Global attention by CUDA C++: it compiles here, and is right on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samfast.attention import reference
from samfast.attention.kernels import hopper_global
from samfast.device import cuda_programs

pytest.importorskip("triton")

from samfast.attention.kernels import global_attention
from samfast.attention.kernels.tunables import GLOBAL
from tests.kernels.hopper import on_hopper, relative

SIDE = hopper_global.SIDE


@pytest.fixture(autouse=True)
def poison():
    """Memory that the kernel leaves unwritten is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def tokens(batch, heads, dim, spread=1.0) -> tuple[Tensor, Tensor, Tensor]:
    """qkv and both tables."""
    generator = torch.Generator().manual_seed(batch * heads + dim)

    def random(*sizes: int, spread: float) -> Tensor:
        return (torch.randn(*sizes, generator=generator) * spread).to("cuda", torch.bfloat16)

    return (
        random(batch, SIDE, SIDE, 3 * heads * dim, spread=spread),
        random(2 * SIDE - 1, dim, spread=0.3),
        random(2 * SIDE - 1, dim, spread=0.3),
    )


def launch(qkv, table_h, table_w, heads):
    return global_attention.launch(qkv, table_h, table_w, heads, GLOBAL[0])


def check(qkv, table_h, table_w, heads):
    assert hopper_global.takes(qkv, heads)
    options = {"num_heads": heads, "window": 0, "pad": None}
    answer = launch(qkv, table_h, table_w, heads)
    truth = reference.attend(qkv.double(), table_h.double(), table_w.double(), **options)
    plain = reference.attend(qkv, table_h, table_w, **options)
    assert answer.shape == truth.shape and answer.dtype == torch.bfloat16
    assert relative(answer, truth) <= 2 * relative(plain, truth)
    # Each row of queries of each head apart: an error in one would be lost in the norm of all.
    for part, whole in zip(answer.flatten(0, 1), truth.flatten(0, 1), strict=True):
        dim = part.shape[-1] // heads
        pairs = zip(part.split(dim, -1), whole.split(dim, -1), strict=True)
        assert max(relative(each, wanted) for each, wanted in pairs) <= 0.05


# Fewer and more shares of rows than there are blocks.
@on_hopper
@pytest.mark.parametrize("dim", hopper_global.DIMS)
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (2, 3), (3, 4)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_it_is_right(dim, batch, heads, spread):
    check(*tokens(batch, heads, dim, spread), heads)


@on_hopper
@pytest.mark.parametrize("dim", hopper_global.DIMS)
def test_weights_that_overflow_are_computed_again(dim):
    """Keys of some other row have scores far above those of the own row."""
    qkv, table_h, table_w = tokens(1, 2, dim, 0.1)
    parts = qkv.unflatten(-1, (3, 2, dim))
    parts[:, 10, :, 0, 0, :8] = 20
    parts[:, 40, 5, 1, 0, :8] = 30
    check(qkv, table_h, table_w, 2)


@on_hopper
@pytest.mark.parametrize("dim", hopper_global.DIMS)
def test_as_triton_and_the_same_each_time(dim, monkeypatch):
    given = (*tokens(8, 12 if dim == 64 else 16, dim), 12 if dim == 64 else 16)
    answer = launch(*given)
    assert all(torch.equal(launch(*given), answer) for _ in range(20))
    monkeypatch.setattr(hopper_global, "takes", lambda qkv, num_heads: False)
    assert relative(answer, launch(*given)) < 1e-3


@on_hopper
def test_nan_is_not_lost():
    qkv, table_h, table_w = tokens(1, 2, 64)
    qkv[0, 3, 4, 5] = torch.nan  # a query of the first head
    answer = launch(qkv, table_h, table_w, 2)
    assert answer[0, 3, 4, :64].isnan().all()
    assert answer.isnan().sum() == 64


@on_hopper
def test_triton_does_what_it_does_not_take():
    qkv, _, _ = tokens(1, 2, 64)
    assert not hopper_global.takes(qkv.half(), 2)
    assert not hopper_global.takes(qkv[:, :32], 2)
    assert not hopper_global.takes(qkv, 4)


def test_a_cpu_is_not_taken():
    assert not hopper_global.takes(torch.zeros(1, SIDE, SIDE, 192).bfloat16(), 1)


@pytest.mark.parametrize("dim", hopper_global.DIMS)
def test_it_compiles_without_a_gpu(dim):
    """The compiler says so where products would wait for one another, for lack of registers."""
    pytest.importorskip("cuda.bindings")
    code, said = cuda_programs.compile_program(hopper_global.program(dim))
    assert code.startswith(b"\x7fELF")
    assert "serialized" not in said and "warning" not in said.lower() and not said
