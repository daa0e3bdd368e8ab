"""The attention kernels against the reference: odd grids, head widths, dtypes, configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from samfast.attention import active_configs, reference, triton
from samfast.attention.kernels import global_attention, tunables, window_attention
from samfast.errors import UnsupportedRecipeError

# NumPy, which the interpreter computes with, warns of weights that overflow. A block of queries
# with such weights is computed again (`global_attention`).
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# The interpreter's bfloat16 product is wrong, so a GPU tests it.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


def tokens(batch, height, width, heads, dim, window, dtype, seed=0):
    """qkv, both tables and a padding token."""
    generator = torch.Generator().manual_seed(seed)

    def random(*sizes: int, spread: float = 1.0) -> torch.Tensor:
        return (torch.randn(*sizes, generator=generator) * spread).to(DEVICE, dtype)

    return (
        random(batch, height, width, 3 * heads * dim),
        random(2 * (window or height) - 1, dim, spread=0.3),
        random(2 * (window or width) - 1, dim, spread=0.3),
        random(3 * heads * dim),
    )


def check(answer, qkv, rel_h, rel_w, pad, heads, window):
    """The error against float64 is at most twice the reference's in the same dtype, or 1e-6."""
    options = {"num_heads": heads, "window": window}
    wide = [None if t is None else t.double() for t in (qkv, rel_h, rel_w, pad)]
    truth = reference.attend(*wide[:3], pad=wide[3], **options)
    allowed = 2 * relative(reference.attend(qkv, rel_h, rel_w, pad=pad, **options), truth)
    assert answer.shape == truth.shape and answer.dtype == qkv.dtype
    assert relative(answer, truth) <= max(allowed, 1e-6)


@pytest.fixture(autouse=True)
def poison():
    """Memory that a kernel leaves unwritten is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@settings(max_examples=40 if CUDA else 10)
@given(
    batch=st.integers(1, 3 if CUDA else 2),
    height=st.integers(1, 40 if CUDA else 8),
    width=st.integers(1, 70 if CUDA else 16),
    heads=st.integers(1, 3 if CUDA else 2),
    dim=st.sampled_from([16, 32, 64, 80]),
    window=st.sampled_from([0, 0, 3, 5, 7, 14, *([18] if CUDA else [])]),
    dtype=st.sampled_from(DTYPES),
    positions=st.booleans(),
    padded=st.booleans(),
)
def test_any_grid(batch, height, width, heads, dim, window, dtype, positions, padded):
    qkv, rel_h, rel_w, pad = tokens(
        batch, height, width, heads, dim, window, dtype, seed=height * 100 + width
    )
    if not positions:
        rel_h = rel_w = None
    if not padded:
        pad = None
    answer = triton.attend(qkv, rel_h, rel_w, num_heads=heads, window=window, pad=pad)
    check(answer, qkv, rel_h, rel_w, pad, heads, window)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [32, 64, 80])
@pytest.mark.parametrize("window", [False, True])
def test_every_configuration(dtype, dim, window):
    capability = torch.cuda.get_device_capability() if CUDA else (9, 0)
    grid = (16, 64) if CUDA else (2, 32)
    side = 14 if window else 0
    if window and not CUDA:
        # Two windows, the second mostly padding. Wide heads in float32 are partitioned, which the
        # interpreter computes slowly: there a smaller window suffices.
        grid, side = ((2, 16), 14) if dtype != torch.float32 or dim <= 32 else ((2, 8), 7)
    qkv, rel_h, rel_w, pad = tokens(2 if CUDA else 1, *grid, 1, dim, side, dtype)
    wrong, right = [], 0
    for candidate in tunables.candidates(window, dtype, capability):
        try:
            if window:
                answer = window_attention.launch(qkv, rel_h, rel_w, pad, 1, side, candidate)
            else:
                answer = global_attention.launch(qkv, rel_h, rel_w, 1, candidate)
        except Exception as error:
            if not CUDA or "out of resource" not in str(error).lower():
                raise
            continue  # does not fit this GPU: the tuner skips it as well
        try:
            check(answer, qkv, rel_h, rel_w, pad, 1, side)
            right += 1
        except AssertionError as error:
            wrong.append((candidate, error))
    assert not wrong and right > 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 80])
def test_scores_far_above_those_of_the_own_row(dtype, dim):
    # A query's own row scores about 0. One key of the last row scores so high that its weight
    # overflows for every query of the first image's blocks, and for none of the second image's.
    height, width = (16, 64) if CUDA else (3, 16)
    qkv, rel_h, rel_w, _ = tokens(2, height, width, 1, dim, 0, dtype)
    qkv[..., : 2 * dim] *= 0.1
    qkv[0, :, :, 0] = 30.0
    qkv[0, -1, 3, dim] = 60.0
    scale = dim**-0.5
    highest = float(qkv[0, -1, 3, :dim] @ qkv[0, -1, 3, dim : 2 * dim]) * scale
    assert highest > 150  # where exp2 of float32 overflows
    capability = torch.cuda.get_device_capability() if CUDA else (9, 0)
    answer = global_attention.launch(
        qkv, rel_h, rel_w, 1, tunables.candidates(False, dtype, capability)[0]
    )
    check(answer, qkv, rel_h, rel_w, None, 1, 0)
    for image in (0, 1):
        check(answer[image : image + 1], qkv[image : image + 1], rel_h, rel_w, None, 1, 0)


def test_the_default_of_every_kind_is_a_candidate():
    for window in (False, True):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for dim in (32, 64, 80):
                for capability in ((8, 0), (9, 0), (10, 0)):
                    chosen = tunables.default(window, dtype, dim, capability)
                    assert chosen in tunables.candidates(window, dtype, capability)


@pytest.mark.parametrize("window", [0, 5])
def test_input_that_is_not_contiguous(window):
    qkv, rel_h, rel_w, pad = tokens(2, 6, 7, 2, 32, window, torch.float32)
    strided = torch.empty(2, 7, 6, 4 * 96, device=DEVICE)[..., :192].transpose(1, 2).copy_(qkv)
    assert not strided.is_contiguous()
    tables = [t.T.contiguous().T for t in (rel_h, rel_w)]
    want = triton.attend(qkv, rel_h, rel_w, num_heads=2, window=window, pad=pad)
    assert torch.equal(triton.attend(strided, *tables, num_heads=2, window=window, pad=pad), want)


@pytest.mark.parametrize(("window", "dim"), [(18, 32), (5, 64)])
def test_windows_that_are_partitioned(window, dim):
    grids = [(window, 2 * window), (window + 1, window + 1), (3, 2 * window - 1)]
    # The interpreter takes the large window only where both sides of the grid are padded.
    for height, width in grids if CUDA or window < 16 else grids[2:]:
        qkv, rel_h, rel_w, pad = tokens(2, height, width, 1, dim, window, torch.float32)
        answer = triton.attend(qkv, rel_h, rel_w, num_heads=1, window=window, pad=pad)
        check(answer, qkv, rel_h, rel_w, pad, 1, window)


def test_one_image_does_not_leak_into_another():
    for window in (0, 5):
        qkv, rel_h, rel_w, pad = tokens(3, 6, 7, 2, 32, window, torch.float32)
        single = triton.attend(qkv[1:2], rel_h, rel_w, num_heads=2, window=window, pad=pad)
        # The interpreter's NumPy warns of NaN.
        qkv[0], qkv[2] = (float("nan"), float("inf")) if CUDA else (1e4, -1e4)
        together = triton.attend(qkv, rel_h, rel_w, num_heads=2, window=window, pad=pad)
        assert torch.equal(together[1:2], single)


def test_tables_of_another_length_are_resized_as_the_reference_does():
    qkv, rel_h, rel_w, _ = tokens(1, 4, 6, 2, 32, 9, torch.float32)
    answer = triton.attend(qkv, rel_h, rel_w, num_heads=2, window=0, pad=None)
    check(answer, qkv, rel_h, rel_w, None, 2, 0)


def test_the_operation_keeps_pytorchs_rules():
    for window in (0, 5):
        qkv, rel_h, rel_w, pad = tokens(1, 5, 6, 2, 32, window, torch.float32)
        checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
        arguments = (qkv, rel_h, rel_w, pad, 2, window)
        torch.library.opcheck(triton.attend_fused.register(), arguments, test_utils=checks)


def test_tokens_on_a_cpu_are_refused(monkeypatch):
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    qkv, rel_h, rel_w, pad = (t.cpu() for t in tokens(1, 4, 4, 1, 32, 0, torch.float32))
    with pytest.raises(UnsupportedRecipeError, match="needs an NVIDIA GPU"):
        triton.attend(qkv, rel_h, rel_w, num_heads=1, window=0, pad=pad)


def test_tuned_configurations_are_used_only_if_they_are_candidates():
    row: dict[str, Any] = {
        "gpu": active_configs.gpu(torch.device(DEVICE))[0],
        "capability": list(active_configs.gpu(torch.device(DEVICE))[1]),
        "window": False,
        "dtype": "float32",
        "dim": 32,
        "config": vars(tunables.GLOBAL_FLOAT32[2]),
    }
    try:
        before = active_configs.config(False, torch.float32, 32, torch.device(DEVICE))
        active_configs.use([row])
        assert (
            active_configs.config(False, torch.float32, 32, torch.device(DEVICE))
            == tunables.GLOBAL_FLOAT32[2]
            != before
        )
        for bad in ({"block_m": 48}, {"colour": 1}):
            with pytest.raises(ValueError, match=r"candidate|configuration"):
                active_configs.use([{**row, "config": {**row["config"], **bad}}])
        with pytest.raises(ValueError, match="configuration"):
            active_configs.use([{"gpu": "x"}])
    finally:
        active_configs.forget()
