"""What a device refuses and what it needs instead, and a recipe's steps in their order."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import skimage
import torch

import samfast
from samfast.device import onednn_products
from samfast.errors import UnsupportedRecipeError
from samfast.recipes import (
    RECIPES,
    Recipe,
    apply,
    build_runtime,
    device_support,
    precision,
    refusal,
)
from samfast.types import PackedPrompts
from tests.model.tiny import TINY, random_sam

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = Recipe(dtype=torch.bfloat16)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU of a capability that the test chooses."""

    def of(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0)
        )

    return of


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_named_recipe_runs_here_or_says_what_it_needs(name):
    reason = refusal(RECIPES[name], CPU)
    recipe = RECIPES[name]
    needs_gpu = (
        recipe.attention == "triton"
        or recipe.graphed
        or recipe.sparsify is not None
        or recipe.quantize == "fp8"
        or recipe.dtype == torch.float16
    )
    needs_cpu = recipe.products != "torch" and (
        recipe.dtype not in onednn_products.dtypes()
        or (recipe.quantize == "int8" and not onednn_products.exact_int8())
    )
    assert (reason is not None) == (needs_gpu or needs_cpu)
    if reason is not None:
        assert ("GPU" in reason) == needs_gpu and (needs_gpu or "needs a CPU with" in reason)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention": "triton"}, "take attention='blocked'"),
        ({"compile": "max-autotune"}, "compile='max-autotune-no-cudagraphs' or 'default'"),
        ({"compile": "reduce-overhead"}, "compile='max-autotune-no-cudagraphs' or 'default'"),
        ({"graph": True}, "take graph=False"),
        ({"quantize": "fp8"}, "8.9"),
        ({"sparsify": "2:4"}, "8.0"),
    ],
)
def test_a_cpu_refuses_what_needs_a_gpu_and_says_what_to_take(change, said):
    assert said in str(refusal(replace(BF16, **change), CPU))
    with pytest.raises(UnsupportedRecipeError, match="on cpu: "):
        apply(random_sam(), replace(BF16, **change), CPU)


@pytest.mark.parametrize("change", [{"compile": "default"}, {"quantize": "int8"}, {"fuse": True}])
def test_a_cpu_runs_the_rest(change, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert refusal(replace(BF16, **change), CPU) is None


def test_compiling_on_a_cpu_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no no-such-compiler" in str(refusal(replace(BF16, compile="default"), CPU))
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "install it" in str(refusal(replace(BF16, compile="default"), CPU))
    assert refusal(BF16, CPU) is None


@pytest.mark.parametrize(("field", "value"), [("quantize", "fp8"), ("sparsify", "2:4")])
def test_float32_has_no_such_products_anywhere(gpu, field, value):
    gpu((9, 0))
    with pytest.raises(UnsupportedRecipeError, match="needs bf16 or fp16"):
        replace(Recipe(), **{field: value})
    assert refusal(replace(BF16, **{field: value}), CUDA) is None


@pytest.mark.parametrize(
    ("change", "capability", "said"),
    [
        ({"dtype": torch.bfloat16}, (7, 5), "8.0"),
        (
            {"dtype": torch.float16, "attention": "triton"},
            (7, 5),
            "8.0 or more (this GPU's is 7.5)",
        ),
        ({"quantize": "int8"}, (7, 5), "8.0"),
        ({"dtype": torch.float16, "sparsify": "2:4"}, (7, 5), "8.0"),
        ({"dtype": torch.float16, "quantize": "fp8"}, (8, 6), "8.9"),
        ({"dtype": torch.float16, "quantize": "fp8"}, (8, 9), None),
        ({"dtype": torch.bfloat16, "compile": "max-autotune", "sparsify": "2:4"}, (8, 0), None),
        ({"graph": True}, (7, 0), None),
    ],
)
def test_a_gpu_s_capability_decides(gpu, change, capability, said):
    gpu(capability)
    reason = refusal(replace(Recipe(), **change), CUDA)
    assert reason is None if said is None else said in str(reason)


@pytest.mark.parametrize(
    "change", [{"attention": "triton"}, {"compile": "default"}, {"fuse": True}]
)
def test_triton_s_kernels_need_triton(gpu, monkeypatch, change):
    gpu((9, 0))
    recipe = replace(BF16, **change)
    monkeypatch.setattr(device_support, "triton_installed", lambda: True)
    assert refusal(recipe, CUDA) is None
    monkeypatch.setattr(device_support, "triton_installed", lambda: False)
    assert "pip install triton" in str(refusal(recipe, CUDA))


def test_a_static_batch_is_described():
    plain = samfast.load("vit_xs", checkpoint="random", device="cpu", recipe="fp32", image_size=64)
    assert "batches of any size" in plain.describe()
    compiled = samfast.load(
        "vit_xs",
        checkpoint="random",
        device="cpu",
        recipe=Recipe(compile="default"),
        image_size=64,
        batch_size=3,
    )
    assert "compiled, in batches of 3; shorter ones are filled up" in compiled.describe()
    assert "compile=default" in compiled.describe()


@torch.no_grad()
@pytest.mark.parametrize("name", ["fp32", "fp32_fused"])
def test_a_runtime_decodes_raw_tensors_of_one_image_and_leaves_the_model_as_it_is(name):
    sam = random_sam()
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    attend = sam.image_encoder.blocks[0].attn.attend
    runtime = build_runtime(sam, RECIPES[name], CPU)
    side = TINY.image_size // 16
    features = torch.randn(
        1, TINY.out_chans, side, side, generator=torch.Generator().manual_seed(0)
    )
    boxes = torch.tensor([[3.0, 4, 50, 60], [9, 9, 90, 20]])
    prompts = PackedPrompts(None, None, boxes, None, (0, 2))
    output = runtime.decode(features, [prompts], multimask=True)
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    low_res, iou = sam.mask_decoder(
        image_embeddings=features,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    torch.testing.assert_close(output.low_res, low_res, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.iou, iou, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in sam.state_dict().items())
    assert sam.image_encoder.blocks[0].attn.attend is attend
    assert runtime.recipe == RECIPES[name]


def test_half_precision_chooses_the_masks_that_float32_does():
    photo = skimage.data.coffee()
    height, width = photo.shape[:2]
    clicks = [(width * (i + 0.5) / 5, height * (j + 0.5) / 5) for i in range(5) for j in range(5)]
    best = {}
    for name in ("fp32_sdpa", "bf16_sdpa"):
        sam = samfast.load("vit_xs", device="cpu", recipe=name)
        prompts = samfast.Prompts(points=[[click] for click in clicks], labels=[[1]] * len(clicks))
        best[name] = sam.predict(sam.embed([photo]), [prompts])[0].iou.argmax(1)
    # Rounded to bfloat16, the ratings of every fourth object would tie or change places.
    assert int((best["fp32_sdpa"] != best["bf16_sdpa"]).sum()) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_predicted_iou_is_not_rounded_to_half_precision(dtype):
    sam = random_sam(TINY)
    apply(sam, Recipe(), CPU)
    precision.convert(sam, dtype)
    head = sam.mask_decoder.iou_prediction_head
    assert head.layers[-1].weight.dtype == torch.float32
    tokens = torch.randn(8, TINY.out_chans, dtype=dtype)
    hidden = tokens
    for layer in head.layers[:-1]:
        hidden = torch.relu(layer(hidden))
    last = head.layers[-1]
    expected = hidden.float() @ last.weight.T + last.bias
    torch.testing.assert_close(head(tokens), expected, atol=1e-6, rtol=1e-6)


def test_a_model_converted_back_to_float32_is_the_same_but_for_rounding():
    sam, other = random_sam(TINY), random_sam(TINY)
    other.load_state_dict(sam.state_dict())
    precision.convert(sam, torch.bfloat16)
    precision.convert(sam, torch.float32)
    assert {p.dtype for p in sam.parameters()} == {torch.float32}
    assert list(sam.state_dict()) == list(other.state_dict())
