"""The linear layers in their own kernels, against plain torch."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from samfast.errors import UnsupportedRecipeError
from samfast.linear import Fp8Linear, Int8Linear, SparseInt8Linear, SparseLinear, quantize_rows
from samfast.linear.dequantized import reference
from samfast.linear.encoder_layers import encoder_layers
from samfast.linear.prune import magnitude
from samfast.linear.sparsify_layers import prune_by_magnitude
from samfast.loading import random_weights
from samfast.model.config import CONFIGS
from samfast.recipes import RECIPES, Recipe, apply, refusal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

CUDA = torch.device("cuda")
ROWS = (1, 7, 16, 17, 300, 4096)
SIZES = ((192, 576), (768, 192), (64, 64), (1280, 3840))


def plain(inputs, outputs, dtype, sparse=False, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(inputs + outputs)
        linear = nn.Linear(inputs, outputs, bias=bias).to(CUDA, dtype).requires_grad_(False)
    if sparse:
        linear.weight.copy_(magnitude(linear.weight))
    return linear


def activations(*shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    return (x * (1 + 5 * torch.rand(shape[-1]))).to(CUDA, dtype)


def relative(a, b):
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm())


def need(recipe):
    reason = refusal(recipe, CUDA)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_gives_what_it_gives_on_a_cpu(inputs, outputs, dtype, bias):
    layer = Int8Linear.from_linear(plain(inputs, outputs, dtype, bias=bias))
    for rows in ROWS:
        x = activations(rows, inputs, dtype=dtype)
        q, scale = quantize_rows(x, torch.int8)
        got = layer.matmul(q, scale, torch.float32)
        sums = (q.cpu().double() @ layer.weight.cpu().double().T).float()
        want = sums * scale.cpu()[:, None] * layer.weight_scale.cpu()
        want = want if layer.bias is None else want + layer.bias.cpu().float()
        torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-6)
        assert layer(x).dtype == dtype


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_fp8_is_as_exact_as_its_reference(inputs, outputs, dtype, bias):
    need(Recipe(dtype=dtype, quantize="fp8"))
    linear = plain(inputs, outputs, dtype, bias=bias)
    layer = Fp8Linear.from_linear(linear)
    for rows in ROWS:
        x = activations(rows, inputs, dtype=dtype)
        truth = F.linear(
            x.double(), linear.weight.double(), None if not bias else linear.bias.double()
        )
        want = reference(x, layer.weight, layer.weight_scale, layer.bias)
        got = layer(x)
        assert got.dtype == dtype and got.shape == (rows, outputs)
        assert relative(got, want) < 0.01  # rounding of the answer, and of sums kept short
        assert relative(got, truth) <= 1.1 * relative(want, truth) + 0.003


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_sparse_gives_what_the_dense_product_gives(inputs, outputs, dtype, bias):
    need(Recipe(dtype=dtype, sparsify="2:4"))
    linear = plain(inputs, outputs, dtype, sparse=True, bias=bias)
    layer = SparseLinear.from_linear(linear)
    for rows in ROWS:
        x = activations(rows, inputs, dtype=dtype)
        truth = F.linear(
            x.double(), linear.weight.double(), None if not bias else linear.bias.double()
        )
        got = layer(x.view(1, rows, inputs))[0]
        assert got.dtype == dtype and got.is_contiguous()
        assert relative(got, truth) <= 2 * relative(linear(x), truth)


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_sparse_int8_gives_what_dense_int8_gives(inputs, outputs, dtype, bias):
    need(RECIPES["int8_2:4"])
    linear = plain(inputs, outputs, dtype, sparse=True, bias=bias)
    dense, layer = Int8Linear.from_linear(linear), SparseInt8Linear.from_linear(linear)
    for rows in ROWS:
        x = activations(rows, inputs, dtype=dtype)
        step = torch.finfo(dtype).eps
        assert relative(layer(x), dense(x)) <= 2 * step
        assert layer(x).dtype == dtype


@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear, SparseLinear, SparseInt8Linear])
def test_zeros_are_answered_with_the_bias(kind):
    need(RECIPES["fp8"] if kind is Fp8Linear else RECIPES["2:4"])
    layer = kind.from_linear(plain(192, 576, torch.bfloat16, sparse=True))
    assert torch.equal(
        layer(torch.zeros(3, 192, dtype=torch.bfloat16, device=CUDA)), layer.bias.expand(3, -1)
    )


@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear, SparseLinear, SparseInt8Linear])
def test_nothing_waits_for_the_gpu_and_a_graph_can_record_it(kind):
    need(RECIPES["fp8"] if kind is Fp8Linear else RECIPES["2:4"])
    layer = kind.from_linear(plain(192, 576, torch.bfloat16, sparse=True))
    x = activations(4096, 192, dtype=torch.bfloat16)
    want = layer(x)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        layer(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        layer(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x)
    x.mul_(2)
    graph.replay()
    assert relative(out, layer(x)) < 1e-6
    assert relative(out, want) > 0.1


@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear, SparseLinear, SparseInt8Linear])
def test_each_compiles_into_one_graph(kind):
    need(RECIPES["fp8"] if kind is Fp8Linear else RECIPES["2:4"])
    layer = kind.from_linear(plain(192, 576, torch.bfloat16, sparse=True))
    x = activations(4096, 192, dtype=torch.bfloat16)
    torch._dynamo.reset()
    got = torch.compile(layer, fullgraph=True)(x)
    assert relative(got, layer(x)) < 0.01
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["int8", "fp8", "2:4", "int8_2:4"])
@torch.no_grad()
def test_recipes_put_them_into_every_block_and_stay_near_the_same_weights_dense(name):
    need(RECIPES[name])
    recipe = replace(
        Recipe(dtype=torch.bfloat16, attention="sdpa"), quantize=RECIPES[name].quantize
    )
    recipe = replace(recipe, sparsify=RECIPES[name].sparsify)
    models = []
    for applied in (recipe, Recipe(dtype=torch.bfloat16, attention="sdpa")):
        sam = random_weights(CONFIGS["vit_xs"])
        if recipe.sparsify:
            prune_by_magnitude(sam, recipe.sparse_layers)
        apply(sam, applied, CUDA)
        models.append(sam)
    assert not any(isinstance(place.module, nn.Linear) for place in encoder_layers(models[0]))
    pixels = torch.randn(2, 3, 1024, 1024, generator=torch.Generator().manual_seed(0)).to(CUDA)
    got, want = (sam.image_encoder(pixels) for sam in models)
    assert relative(got, want) < (0.1 if recipe.quantize == "fp8" else 0.05)


def test_weights_that_are_not_pruned_are_refused():
    need(RECIPES["2:4"])
    with pytest.raises(UnsupportedRecipeError, match="samfast quantize"):
        apply(random_weights(CONFIGS["vit_xs"]), RECIPES["2:4"], CUDA)
