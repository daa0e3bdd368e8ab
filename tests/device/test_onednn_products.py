"""oneDNN's products against float64, packed weights and plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from samfast.device import onednn_products
from samfast.errors import UnsupportedRecipeError

pytestmark = pytest.mark.skipif(not onednn_products.available(), reason="this torch has no oneDNN")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 50)),
    dtype=st.sampled_from(onednn_products.dtypes()),
    packed=st.booleans(),
    strided=st.booleans(),
    after=st.sampled_from(("nothing", "bias", "gelu", "add")),
    seed=st.integers(0, 99),
)
def test_a_product_is_no_worse_than_torch_s(sizes, dtype, packed, strided, after, seed):
    rows, inputs, outputs = sizes
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    x, weight = random(rows, inputs), random(outputs, inputs)
    if strided:
        weight = random(inputs, outputs).T
    bias = None if after == "nothing" else random(outputs)
    add = random(rows, outputs) if after == "add" else None

    def by_torch(kind: torch.dtype) -> torch.Tensor:
        out = F.linear(x.to(kind), weight.to(kind), None if bias is None else bias.to(kind))
        out = F.gelu(out) if after == "gelu" else out
        return out if add is None else out + add.to(kind)

    given_weight = onednn_products.pack(weight) if packed else weight
    answer = onednn_products.product(x, given_weight, bias, gelu=after == "gelu", add=add)
    assert answer.dtype == dtype and answer.shape == (rows, outputs)
    truth = by_torch(torch.float64)
    floor = 1e-6 if dtype == torch.float32 else 4e-3  # of a single number, half a last place
    assert relative(answer, truth) <= max(2 * relative(by_torch(dtype), truth), floor)


@pytest.mark.skipif(not onednn_products.exact_int8(), reason="this CPU has no VNNI")
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(1, 50)),
    seed=st.integers(0, 99),
)
def test_sums_of_bytes_are_exact(sizes, seed):
    rows, inputs, outputs = sizes
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, (rows, inputs), generator=generator, dtype=torch.int8)
    weight = torch.randint(-128, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    x[0], weight[0] = 127, 127  # the largest sums
    answer = onednn_products.product_int8(x, onednn_products.pack_int8(weight), torch.ones(outputs))
    assert torch.equal(answer.double(), x.double() @ weight.double().T)


def test_scales_are_of_channels():
    x = torch.ones(2, 8, dtype=torch.int8)
    weight = torch.ones(3, 8, dtype=torch.int8)
    scale = torch.tensor([0.5, 1.0, 2.0])
    answer = onednn_products.product_int8(x, onednn_products.pack_int8(weight), scale)
    assert torch.equal(answer, torch.tensor([[4.0, 8.0, 16.0]]).expand(2, -1))


@pytest.mark.parametrize("x", [torch.zeros(1, dtype=torch.float64), torch.zeros(1).to("meta")])
def test_what_onednn_does_not_multiply_is_refused(x):
    with pytest.raises(UnsupportedRecipeError, match="this is float"):
        onednn_products.check(x, "attention 'onednn'")
    onednn_products.check(torch.zeros(1), "attention 'onednn'")
