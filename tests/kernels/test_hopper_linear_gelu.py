"""The linear layer with GELU by CUDA C++: it compiles here, and is right on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.device import cuda_programs
from samfast.encoding.kernels import hopper_linear_gelu
from samfast.linear.quantization import quantize_rows

pytest.importorskip("triton")

from samfast.encoding.kernels import linear_gelu
from tests.kernels.hopper import HALVES, on_hopper, relative

FP8 = torch.float8_e4m3fn
# One tile; fewer and more tiles than blocks; rows that end within a tile; a depth that ends within
# a stage; fewer stages than a tile's turn needs, and many more.
SHAPES = [
    (1, 64, 256), (128, 768, 256), (300, 192, 768), (4096, 768, 3072), (5000, 1280, 512),
    (32768, 768, 3072), (20001, 72, 1024), (777, 5120, 256),
]  # fmt: skip


def operands(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias: rows, width and columns."""
    rows, width, columns = shape
    generator = torch.Generator("cuda").manual_seed(rows + width)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device="cuda")

    weight = random(columns, width) * width**-0.5
    return random(rows, width).to(dtype), weight.to(dtype), random(columns).to(dtype)


@on_hopper
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision(shape, dtype):
    x, weight, bias = operands(shape, dtype)
    assert hopper_linear_gelu.takes(x, weight, bias)
    answer = linear_gelu.launch(x, weight, bias)
    truth = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    plain = F.gelu(F.linear(x, weight, bias))
    assert answer.shape == truth.shape and answer.dtype == dtype
    assert relative(answer, truth) <= 2 * relative(plain, truth)
    # Each block of rows apart: an error in one of many would be lost in the norm of all.
    for part, whole in zip(answer.split(128), truth.split(128), strict=True):
        assert relative(part, whole) <= 0.01


@on_hopper
@pytest.mark.parametrize("bias_dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] % 16 == 0], ids=str)
def test_float8_is_what_triton_computes(shape, bias_dtype, monkeypatch):
    x, weight, bias = operands(shape, bias_dtype)
    hidden = F.gelu(F.linear(x, weight, bias)).abs().amax().float() * 1.1
    given = (*quantize_rows(x, FP8), *quantize_rows(weight, FP8), bias, hidden)
    assert hopper_linear_gelu.takes(given[0], given[2], bias)
    answer, scale = linear_gelu.launch_quantized(*given)
    monkeypatch.setattr(hopper_linear_gelu, "takes", lambda *operands: False)
    wanted, wanted_scale = linear_gelu.launch_quantized(*given)
    torch.testing.assert_close(scale, wanted_scale, rtol=1e-6, atol=0)
    bits, wanted_bits = (each.view(torch.uint8) for each in (answer, wanted))
    # Where a sum is rounded otherwise a value may become the next one.
    assert (bits != wanted_bits).double().mean() < 1e-3
    assert relative(answer.float(), wanted.float()) < 1e-3


@on_hopper
def test_what_exceeds_the_bound_is_nan():
    x, weight, bias = operands((300, 192, 256), torch.bfloat16)
    x[77] *= 1000
    given = (*quantize_rows(x, FP8), *quantize_rows(weight, FP8), bias)
    answer, _ = linear_gelu.launch_quantized(*given, torch.tensor(20.0, device="cuda"))
    assert answer[77].isnan().any()
    unchanged = torch.arange(300, device="cuda") != 77
    assert not answer.float()[unchanged].isnan().any()


@on_hopper
def test_the_same_answer_each_time():
    given = operands((32768, 768, 3072), torch.bfloat16)
    answers = [linear_gelu.launch(*given) for _ in range(20)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)


@on_hopper
def test_triton_does_what_it_does_not_take():
    x, weight, bias = operands((300, 192, 256), torch.bfloat16)
    assert not hopper_linear_gelu.takes(x, weight[:200], bias[:200])
    assert not hopper_linear_gelu.takes(x, weight, bias.float())


def test_a_cpu_is_not_taken():
    x, weight = torch.zeros(4, 64).bfloat16(), torch.zeros(256, 64).bfloat16()
    assert not hopper_linear_gelu.takes(x, weight, weight[:, 0])


@pytest.mark.parametrize(
    ("dtype", "bias"), [*((d, d) for d in HALVES), *((FP8, d) for d in HALVES)], ids=str
)
def test_it_compiles_without_a_gpu(dtype, bias):
    """The compiler says so where products would wait for one another, for lack of registers."""
    pytest.importorskip("cuda.bindings")
    code, said = cuda_programs.compile_program(hopper_linear_gelu.program(dtype, bias))
    assert code.startswith(b"\x7fELF")
    assert "serialized" not in said and "warning" not in said.lower()
