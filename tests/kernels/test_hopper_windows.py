"""Window attention by CUDA C++: it compiles here, and is right on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samfast.attention import reference, triton
from samfast.attention.kernels import hopper_windows
from samfast.device import cuda_programs
from tests.kernels.hopper import HALVES, on_hopper, relative


@pytest.fixture(autouse=True)
def poison():
    """Memory that the kernel leaves unwritten is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def tokens(batch, grid, heads, dim, dtype, seed=0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """qkv, both tables and a padding token."""
    generator = torch.Generator().manual_seed(seed)

    def random(*sizes: int, spread: float = 1.0) -> Tensor:
        return (torch.randn(*sizes, generator=generator) * spread).to("cuda", dtype)

    return (
        random(batch, *grid, 3 * heads * dim),
        random(27, dim, spread=0.3),
        random(27, dim, spread=0.3),
        random(3 * heads * dim),
    )


def check(qkv, table_h, table_w, pad, heads):
    """The error against float64 is at most twice the reference's in the same dtype."""
    assert hopper_windows.takes(qkv, heads, 14)
    answer = hopper_windows.launch(qkv, table_h, table_w, pad, heads)
    options = {"num_heads": heads, "window": 14}
    given = (qkv, table_h, table_w, pad)
    wide = [None if t is None else t.double() for t in given]
    truth = reference.attend(*wide[:3], pad=wide[3], **options)
    allowed = 2 * relative(reference.attend(*given[:3], pad=pad, **options), truth)
    assert answer.shape == truth.shape and answer.dtype == qkv.dtype
    assert relative(answer, truth) <= allowed
    # Each window and head apart: an error in one of many would be lost in the norm of all.
    dim = qkv.shape[-1] // (3 * heads)
    for image in range(len(qkv)):
        for head in range(heads):
            part = slice(head * dim, (head + 1) * dim)
            assert relative(answer[image, ..., part], truth[image, ..., part]) <= 2 * allowed


@on_hopper
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dim", hopper_windows.DIMS)
@pytest.mark.parametrize(
    "grid", [(64, 64), (14, 14), (1, 1), (5, 37), (37, 5), (28, 15), (15, 28), (70, 70)], ids=str
)
def test_grids(grid, dim, dtype):
    check(*tokens(2, grid, 3, dim, dtype), 3)


@on_hopper
@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (12, 64), (16, 80)])
def test_more_and_fewer_windows_than_blocks(batch, heads, dim):
    check(*tokens(batch, (64, 64), heads, dim, torch.bfloat16), heads)


@on_hopper
def test_without_positions_and_without_a_padding_token():
    qkv, table_h, table_w, pad = tokens(2, (40, 33), 2, 64, torch.bfloat16)
    check(qkv, table_h, table_w, None, 2)
    check(qkv, None, None, pad, 2)


@on_hopper
@pytest.mark.parametrize("dim", hopper_windows.DIMS)
def test_large_scores(dim):
    """Scores of which one weighs all, in any of the three parts of the keys."""
    qkv, table_h, table_w, pad = tokens(1, (28, 28), 2, dim, torch.bfloat16)
    check(qkv * 8, table_h, table_w, pad, 2)


@on_hopper
def test_the_same_answer_each_time():
    given = tokens(8, (64, 64), 12, 64, torch.bfloat16)
    answers = [hopper_windows.launch(*given, 12) for _ in range(20)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)


@on_hopper
def test_a_graph_records_it():
    given = tokens(2, (64, 64), 12, 64, torch.bfloat16)
    wanted = hopper_windows.launch(*given, 12)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = triton.attend_fused(*given, 12, 14)
    answer.zero_()
    graph.replay()
    assert torch.equal(answer, wanted)


@on_hopper
@pytest.mark.parametrize(
    ("dim", "window", "dtype"),
    [(64, 7, torch.bfloat16), (48, 14, torch.bfloat16), (64, 14, torch.float32)],
)
def test_triton_does_what_it_does_not_take(dim, window, dtype):
    qkv = tokens(1, (20, 20), 2, dim, dtype)[0]
    assert not hopper_windows.takes(qkv, 2, window)
    answer = triton.attend_fused(qkv, None, None, None, 2, window)
    truth = reference.attend(qkv.double(), None, None, num_heads=2, window=window, pad=None)
    assert relative(answer, truth) < 0.01


def test_a_cpu_is_not_taken():
    assert not hopper_windows.takes(torch.zeros(1, 14, 14, 192, dtype=torch.bfloat16), 1, 14)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dim", hopper_windows.DIMS)
def test_it_compiles_without_a_gpu(dim, dtype):
    """The compiler says so where products would wait for one another, for lack of registers."""
    pytest.importorskip("cuda.bindings")
    program = hopper_windows.program(dtype, dim)
    code, said = cuda_programs.compile_program(program)
    assert code.startswith(b"\x7fELF")
    assert "serialized" not in said and "warning" not in said.lower()


def test_the_compilers_message_is_told(tmp_path):
    pytest.importorskip("cuda.bindings")
    source = tmp_path / "broken.cu"
    source.write_text('extern "C" __global__ void f() { undefined(); }')
    program = cuda_programs.CudaProgram(source, "f", (), "sm_90a")
    with pytest.raises(cuda_programs.CudaProgramError, match=r"broken\.cu.*undefined"):
        cuda_programs.compile_program(program)
