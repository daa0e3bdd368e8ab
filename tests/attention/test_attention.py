"""Every implementation against the reference.

The error against float64 is at most twice the reference's in the same dtype, with a floor of 1e-6
in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from samfast.attention import IMPLEMENTATIONS, blocked, get, onednn, reference, sdpa
from samfast.device import onednn_products
from samfast.errors import RecipeError, UnsupportedRecipeError

ON_A_CPU = [name for name in IMPLEMENTATIONS if name != "triton"]  # for triton: tests/kernels
OTHERS = [name for name in ON_A_CPU if name != "reference"]
WITH_GRADIENTS = [name for name in OTHERS if name not in ("blocked", "onednn")]
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-4}


@dataclass(frozen=True)
class Case:
    grid: tuple[int, int]
    batch: int = 1
    heads: int = 2
    dim: int = 32
    window: int = 0
    longer: int = 0  # rows that the tables have too many, or too few
    positions: bool = True
    pad: bool = True
    strided: bool = False
    loops: bool = True  # small enough for the definition written out in loops

    def inputs(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(5)

        def random(*shape):
            return torch.randn(*shape, generator=generator).to(dtype)

        width = 3 * self.heads * self.dim
        if self.strided:
            twice = random(self.batch, self.grid[1], self.grid[0], 2 * width)
            qkv = twice.transpose(1, 2)[..., ::2]
            assert not qkv.is_contiguous()
        else:
            qkv = random(self.batch, *self.grid, width)
        sides = (self.window, self.window) if self.window else self.grid
        tables = [
            random(2 * side - 1 + self.longer, self.dim) if self.positions else None
            for side in sides
        ]
        return qkv, *tables, random(width) if self.pad else None

    def run(self, attend, qkv, rel_pos_h, rel_pos_w, pad):
        return attend(qkv, rel_pos_h, rel_pos_w, num_heads=self.heads, window=self.window, pad=pad)


CASES = {
    "odd grid": Case((9, 7)),
    "one row": Case((1, 11), heads=1),
    "one token": Case((1, 1), batch=3),
    "batch 3": Case((6, 5), batch=3, heads=3),
    "head dim 64": Case((7, 8), dim=64),
    "head dim 80": Case((8, 5), dim=80),
    "strided": Case((9, 7), batch=2, strided=True),
    "longer tables": Case((6, 9), longer=6),
    "shorter tables": Case((6, 9), longer=-4),
    "no positions": Case((5, 9), batch=2, positions=False),
    "whole windows": Case((8, 12), window=4),
    "windows that do not divide": Case((9, 7), window=4, batch=3),
    "windows without pad": Case((9, 7), window=4, pad=False),
    "windows, no positions": Case((9, 7), window=4, positions=False),
    "windows, strided": Case((9, 7), window=4, strided=True, batch=2, dim=64),
    "windows, longer tables": Case((9, 7), window=3, longer=4, dim=80),
    "one window, larger than the grid": Case((5, 6), window=9),
    "sam's windows": Case((15, 29), window=14, heads=3, dim=64, loops=False),
}


def relative(answer, truth):
    return float((answer.double() - truth).norm() / truth.norm())


def allowed(case, dtype, inputs, truth):
    return max(2 * relative(case.run(reference.attend, *inputs), truth), FLOOR[dtype])


def as_double(inputs):
    return [None if each is None else each.double() for each in inputs]


def written_out(case, qkv, rel_pos_h, rel_pos_w, pad):
    """The definition, token by token in loops, for tables of the right length."""
    _, height, width, channels = qkv.shape
    side = case.window
    if side:
        rows, columns = -height % side, -width % side
        real = torch.ones(height, width, dtype=torch.bool)
        real = F.pad(real, (0, columns, 0, rows))
        filled = F.pad(qkv, (0, 0, 0, columns, 0, rows))
        filled[:, ~real] = 0 if pad is None else pad
    else:
        side, filled = max(height, width), qkv
    out = torch.zeros(*filled.shape[:3], channels // 3, dtype=qkv.dtype)
    for top in range(0, filled.shape[1], side):
        for left in range(0, filled.shape[2], side):
            tokens = filled[:, top : top + side, left : left + side]
            high, wide = tokens.shape[1:3]
            q, k, v = tokens.unflatten(-1, (3, case.heads, case.dim)).unbind(3)
            for r in range(high):
                for c in range(wide):
                    one = q[:, r, c]
                    scores = torch.einsum("bnd,brcnd->bnrc", one, k) * case.dim**-0.5
                    if rel_pos_h is not None:
                        for row in range(high):
                            scores[:, :, row] += (one @ rel_pos_h[r - row + high - 1])[..., None]
                        for column in range(wide):
                            term = one @ rel_pos_w[c - column + wide - 1]
                            scores[..., column] += term[..., None]
                    weights = scores.flatten(2).softmax(-1).unflatten(2, (high, wide))
                    attended = torch.einsum("bnrc,brcnd->bnd", weights, v)
                    out[:, top + r, left + c] = attended.flatten(1)
    return out[:, :height, :width]


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.loops and not case.longer]
)
@torch.no_grad()
def test_the_reference_is_the_definition(name):
    case = CASES[name]
    inputs = as_double(case.inputs())
    assert relative(case.run(reference.attend, *inputs), written_out(case, *inputs)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_equals_the_reference(name, case, dtype):
    inputs = case.inputs(dtype)
    if name == "onednn" and dtype not in onednn_products.dtypes():
        with pytest.raises(UnsupportedRecipeError, match="AVX-512"):
            case.run(get(name), *inputs)
        return
    truth = case.run(reference.attend, *as_double(inputs))
    answer = case.run(get(name), *inputs)
    assert answer.shape == truth.shape == (case.batch, *case.grid, case.heads * case.dim)
    assert answer.dtype == dtype
    assert relative(answer, truth) <= allowed(case, dtype, inputs, truth)


@pytest.mark.parametrize(
    "case", [CASES["odd grid"], CASES["windows that do not divide"]], ids=["global", "windows"]
)
@pytest.mark.parametrize("elements", [1, 40, 200, 1000, 4000, 1 << 40])
@pytest.mark.parametrize("name", ["blocked", "onednn", "sdpa"])
@torch.no_grad()
def test_every_block_size(name, elements, case, monkeypatch):
    """From one row of queries at a time to everything at once."""
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(onednn, "BLOCK_BYTES", 4 * elements)
    monkeypatch.setattr(sdpa, "CPU_BIAS_ELEMENTS", elements)
    inputs = case.inputs()
    truth = case.run(reference.attend, *as_double(inputs))
    assert relative(case.run(get(name), *inputs), truth) <= allowed(
        case, torch.float32, inputs, truth
    )


@pytest.mark.parametrize("name", ON_A_CPU)
@torch.no_grad()
def test_inputs_are_left_as_they_are(name):
    case = CASES["windows that do not divide"]
    inputs = case.inputs()
    kept = [each.clone() for each in inputs]
    case.run(get(name), *inputs)
    assert all(torch.equal(each, copy) for each, copy in zip(inputs, kept, strict=True))


@pytest.mark.parametrize("name", ON_A_CPU)
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(name):
    case = CASES["windows that do not divide"]
    qkv, *rest = case.inputs()
    together = case.run(get(name), qkv, *rest)
    alone = case.run(get(name), qkv[1:2], *rest)
    assert relative(alone, together[1:2].double()) < 1e-6


@pytest.mark.parametrize("grid", [(64, 64), (40, 61)], ids=str)
@pytest.mark.parametrize("name", ["blocked", "onednn", "sdpa"])
@torch.no_grad()
def test_sizes_of_a_real_image(name, grid):
    """Large enough that blocks are cut as they are in use."""
    case = Case(grid, heads=1, dim=64)
    inputs = case.inputs()
    truth = case.run(reference.attend, *as_double(inputs))
    assert relative(case.run(get(name), *inputs), truth) <= allowed(
        case, torch.float32, inputs, truth
    )


@pytest.mark.parametrize(
    "case", ["odd grid", "longer tables", "windows that do not divide", "no positions"]
)
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(name, case):
    """Within four times the reference's error, not two, as gradients are longer sums."""

    def gradients(attend, inputs):
        leaves = [None if each is None else each.clone().requires_grad_() for each in inputs]
        out = case.run(attend, *leaves)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
        used = [leaf for leaf in leaves if leaf is not None]
        grads = torch.autograd.grad((out * weight).sum(), used, allow_unused=True)
        return [grad for grad in grads if grad is not None]

    case = CASES[case]
    inputs = case.inputs()
    truths = gradients(reference.attend, as_double(inputs))
    plain = gradients(reference.attend, inputs)
    answers = gradients(get(name), inputs)
    assert len(answers) == len(truths) >= (3 if case.positions else 1)
    for answer, expected, truth in zip(answers, plain, truths, strict=True):
        assert relative(answer, truth) <= max(4 * relative(expected, truth), 1e-6)


@pytest.mark.parametrize("attend", [blocked.attend, onednn.attend])
def test_those_without_gradients_refuse_them(attend):
    case = CASES["odd grid"]
    qkv, *rest = case.inputs()
    with pytest.raises(RecipeError, match="no gradients"):
        case.run(attend, qkv.requires_grad_(), *rest)
    with torch.inference_mode():
        case.run(attend, qkv, *rest)


def test_unknown_names():
    with pytest.raises(RecipeError, match=r"'x'.*folded"):
        get("x")
