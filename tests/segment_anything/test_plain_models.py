"""A plain model in the drop-in: the fastest float32 recipe runs, until a caller changes the model.

Each change is made after the recipe has run, and the predictor must then do what the modules do.
"""

from __future__ import annotations

import copy
import logging
import pickle
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import samfast
from samfast.decoding.packed_decoder import PackedDecoder
from samfast.encoding.onednn_encoder import OneDnnEncoder
from samfast.engine import SamFast
from samfast.errors import RecipeError, UnsupportedRecipeError
from samfast.model.image_encoder import Attention
from samfast.model.sam import Sam, build
from samfast.recipes import RECIPES
from samfast.segment_anything import (
    SamAutomaticMaskGenerator,
    SamPredictor,
    build_sam,
    sam_model_fast_registry,
    sam_model_registry,
)
from samfast.segment_anything.build_sam import ask_for_all
from samfast.segment_anything.modeling import ImageEncoderViT
from samfast.segment_anything.recipe_runner import FASTEST_FP32, ask_for
from tests import oracle
from tests.pairs import SMALL, pair, picture, relative_error

IMAGE = picture(120, 200)
POINT = {"point_coords": np.array([[30.0, 40]]), "point_labels": np.array([1])}
BOX = {"box": np.array([20.0, 10, 160, 90])}
MASK = {"mask_input": 4 * np.random.default_rng(0).standard_normal((1, 64, 64)).astype(np.float32)}
PROMPTS: tuple[dict[str, Any], ...] = (POINT, BOX, POINT | BOX | MASK, {})
GRID: dict[str, Any] = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "output_mode": "uncompressed_rle",
}


def plain() -> Sam:
    """A model as the registry builds it, of a small size, with random weights."""
    sam = build(SMALL, encoder=ImageEncoderViT)
    sam.load_state_dict(pair()[0].state_dict())
    return sam


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "samfast")


def test_the_recipe_is_the_originals_within_rounding(caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = oracle.load().SamPredictor(pair()[0]), SamPredictor(plain())
    for predictor in (theirs, ours):
        predictor.set_image(IMAGE)
    assert relative_error(ours.get_image_embedding(), theirs.get_image_embedding()) <= 1e-5
    for prompts in PROMPTS:
        given = {**prompts, "return_logits": True}
        for expected, result in zip(theirs.predict(**given), ours.predict(**given), strict=True):
            assert relative_error(result, expected) <= 1e-4
    runs = [line for line in caplog.messages if "runs the recipe fp32_onednn" in line]
    assert len(runs) == 1
    assert "recipe    fp32_onednn (" in ours.describe()


def test_the_model_is_neither_copied_nor_changed() -> None:
    sam = plain()
    before = {name: (p.data_ptr(), p.dtype) for name, p in sam.state_dict().items()}
    blocks: Any = sam.image_encoder.blocks
    attend = [block.attn.attend for block in blocks]
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    predictor.predict(**BOX)
    assert {name: (p.data_ptr(), p.dtype) for name, p in sam.state_dict().items()} == before
    assert [block.attn.attend for block in blocks] == attend
    assert predictor.model is sam
    fast = predictor.runner.current()
    assert isinstance(fast, SamFast)
    assert isinstance(fast.decode, PackedDecoder)
    assert isinstance(fast.encode._encode, OneDnnEncoder)
    assert sum(p.numel() for p in fast.encode._encode.parameters()) == sum(
        p.numel() for p in sam.image_encoder.parameters()
    )


def test_weights_that_are_written_to_are_used() -> None:
    """As by load_state_dict and optimizers: the recipe stays, its results follow."""
    sam = plain()
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    before = predictor.predict(**BOX)[2]
    theirs, _ = pair(seed=1)
    sam.load_state_dict(theirs.state_dict())
    predictor.set_image(IMAGE)
    original = oracle.load().SamPredictor(theirs)
    original.set_image(IMAGE)
    after = predictor.predict(**BOX)[2]
    assert relative_error(after, original.predict(**BOX)[2]) <= 1e-4
    assert relative_error(after, before) > 0.1
    assert isinstance(predictor.runner.current(), SamFast)


class Scaled(nn.Module):
    """A layer that a caller puts around another, as LoRA does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        return 0.5 * self.inner(*args)


def hook_encoder(sam: Any, patch: pytest.MonkeyPatch) -> None:
    sam.image_encoder.neck.register_forward_hook(lambda module, inputs, output: 0.5 * output)


def hook_deep_in_encoder(sam: Any, patch: pytest.MonkeyPatch) -> None:
    sam.image_encoder.blocks[2].mlp.act.register_forward_pre_hook(lambda module, x: 0.5 * x[0])


def hook_decoder(sam: Any, patch: pytest.MonkeyPatch) -> None:
    sam.mask_decoder.transformer.layers[1].mlp.register_forward_hook(lambda m, x, out: 0.5 * out)


def hook_every_module(sam: Any, patch: pytest.MonkeyPatch) -> None:
    def half(module: nn.Module, inputs: Any, output: Any) -> Any:
        return 0.5 * output if isinstance(module, nn.Conv2d) else None

    handle = nn.modules.module.register_module_forward_hook(half)
    patch.setattr(sam, "remove_hook", handle.remove, raising=False)


def replace_qkv(sam: Any, patch: pytest.MonkeyPatch) -> None:
    block = sam.image_encoder.blocks[0]
    block.attn.qkv = Scaled(block.attn.qkv)


def subclass_linear(sam: Any, patch: pytest.MonkeyPatch) -> None:
    class Half(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0.5 * super().forward(x)

    sam.image_encoder.blocks[1].mlp.lin1.__class__ = Half


def replace_encoder(sam: Any, patch: pytest.MonkeyPatch) -> None:
    encoder = Scaled(sam.image_encoder).eval()
    encoder.img_size = 256  # type: ignore[assignment]
    sam.image_encoder = encoder


def replace_activation(sam: Any, patch: pytest.MonkeyPatch) -> None:
    sam.mask_decoder.output_upscaling[4] = nn.Tanh()


def replace_method(sam: Any, patch: pytest.MonkeyPatch) -> None:
    inner = sam.prompt_encoder._embed_boxes
    sam.prompt_encoder._embed_boxes = lambda boxes: 0.5 * inner(boxes)


def replace_method_of_class(sam: Any, patch: pytest.MonkeyPatch) -> None:
    inner: Any = Attention.forward
    patch.setattr(Attention, "forward", lambda self, x: 0.5 * inner(self, x))


def replace_preprocess(sam: Any, patch: pytest.MonkeyPatch) -> None:
    inner = sam.preprocess
    sam.preprocess = lambda x: 0.5 * inner(x)


def cast(sam: Any, patch: pytest.MonkeyPatch) -> None:
    sam.bfloat16()


def train(sam: Any, patch: pytest.MonkeyPatch) -> None:
    sam.train()


def train_decoder(sam: Any, patch: pytest.MonkeyPatch) -> None:
    sam.mask_decoder.train()


CHANGES: dict[Callable[[Any, pytest.MonkeyPatch], None], str] = {
    hook_encoder: "replaced or hooked",
    hook_deep_in_encoder: "replaced or hooked",
    hook_decoder: "replaced or hooked",
    hook_every_module: "replaced or hooked",
    replace_qkv: "Scaled is no layer",
    subclass_linear: "Half is no layer",
    replace_encoder: "Scaled is no layer",
    replace_activation: "Tanh is no layer",
    replace_method: "replaced or hooked",
    replace_method_of_class: "replaced or hooked",
    replace_preprocess: "Sam.preprocess is another",
    cast: "in torch.bfloat16, not torch.float32",
    train: "in training mode",
    train_decoder: "in training mode",
}


def by_modules(sam: Any) -> torch.Tensor:
    """The low-resolution logits for BOX by calls of the model's modules."""
    transform = SamPredictor(sam).transform
    pixels = torch.from_numpy(transform.apply_image(IMAGE)).permute(2, 0, 1)[None]
    boxes = torch.from_numpy(transform.apply_boxes(BOX["box"], IMAGE.shape[:2])).float()
    with torch.no_grad():
        embedding = sam.image_encoder(sam.preprocess(pixels))
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
        position = sam.prompt_encoder.get_dense_pe()
        low_res, _ = sam.mask_decoder(embedding, position, sparse, dense, True)
    return low_res[0].float()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_is_called_and_logged_once(
    change: Callable[[Any, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sam = plain()
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    before = predictor.predict(**BOX)[2]
    change(sam, monkeypatch)
    caplog.clear()
    try:
        for each in (predictor, SamPredictor(sam)):
            each.set_image(IMAGE)
            assert np.array_equal(each.predict(**BOX)[2], by_modules(sam).numpy())
            assert CHANGES[change] in each.describe()
            assert "the modules of the model are called" in each.describe()
    finally:
        getattr(sam, "remove_hook", lambda: None)()
    assert len(caplog.messages) == 2, "once for each predictor"
    assert all(CHANGES[change] in line for line in caplog.messages)
    if change not in (train, train_decoder, cast):
        assert relative_error(by_modules(sam), before) > 1e-3 or change is hook_every_module


def test_the_recipe_comes_back_when_the_hook_is_removed() -> None:
    sam = plain()
    predictor = SamPredictor(sam)
    handle = sam.image_encoder.register_forward_hook(lambda *_: None)
    assert "hooked" in predictor.describe()
    handle.remove()
    assert "fp32_onednn" in predictor.describe()
    sam.bfloat16()
    assert "bfloat16" in predictor.describe()
    sam.float()
    assert "fp32_onednn" in predictor.describe()


def test_a_compiled_encoder_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    sam = plain()
    predictor = SamPredictor(sam)
    monkeypatch.setattr(torch, "compile", lambda inner, **_: lambda *x: 0.5 * inner(*x))
    sam.image_encoder.compile()
    predictor.set_image(IMAGE)
    assert "replaced or hooked" in predictor.describe()
    assert predictor.features is not None
    twin = SamPredictor(plain())
    twin.set_image(IMAGE)
    assert twin.features is not None
    assert relative_error(2 * predictor.features, twin.features) <= 1e-5


def test_modules_run_under_autocast_and_with_gradients() -> None:
    sam = plain()
    predictor, original = SamPredictor(sam), oracle.load().SamPredictor(pair()[0])
    boxes = torch.tensor([[20.0, 10, 160, 90]])
    with torch.autocast("cpu", torch.bfloat16):
        results = []
        for each in (original, predictor):
            each.set_image(IMAGE)
            results.append((each.features, *each.predict_torch(None, None, boxes)))
        for expected, result in zip(*results, strict=True):
            assert result.dtype == expected.dtype
        assert results[0][2].dtype == torch.bfloat16
        assert predictor.predict(**BOX)[2].dtype == np.float32  # NumPy has no bfloat16
    predictor.set_image(IMAGE)
    with_gradients: Any = SamPredictor.predict_torch
    with_gradients.__wrapped__(predictor, None, None, boxes)[2].sum().backward()
    assert sam.mask_decoder.iou_token.weight.grad is not None


def test_direct_calls_have_gradients_after_the_recipe_ran() -> None:
    sam = plain()
    with torch.inference_mode():
        SamPredictor(sam).set_image(IMAGE)
    sam.image_encoder(torch.zeros(1, 3, 256, 256)).sum().backward()
    assert sam.image_encoder.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_the_callers_mode_makes_no_difference(mode: Callable[[], Any]) -> None:
    expected = SamPredictor(plain())
    expected.set_image(IMAGE)
    with mode():
        predictor = SamPredictor(plain())
        predictor.set_image(IMAGE)
        assert np.array_equal(predictor.predict(**BOX)[2], expected.predict(**BOX)[2])


def test_the_generator_segments() -> None:
    sam = plain()
    generator = SamAutomaticMaskGenerator(sam, **GRID)
    assert "recipe    fp32_onednn (" in generator.describe()
    records = generator.generate(IMAGE)
    expected = oracle.load().SamAutomaticMaskGenerator(pair()[0], **GRID).generate(IMAGE)
    assert len(records) == len(expected) >= 9
    for ours, theirs in zip(records, expected, strict=True):
        assert ours["point_coords"] == theirs["point_coords"]
        assert abs(ours["area"] - theirs["area"]) <= 0.001 * 120 * 200
    sam.image_encoder.neck.register_forward_hook(lambda module, inputs, output: 0.5 * output)
    assert "replaced or hooked" in generator.describe()
    changed = generator.generate(IMAGE)
    assert [each["area"] for each in changed] != [each["area"] for each in records]


def test_copies_and_pickles() -> None:
    predictor = SamPredictor(plain())
    predictor.set_image(IMAGE)
    expected = predictor.predict(**BOX)[2]
    for twin in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        assert np.array_equal(twin.predict(**BOX)[2], expected)
        assert twin.model is not predictor.model
        with torch.no_grad():
            next(twin.model.mask_decoder.parameters()).mul_(2)
        assert not np.array_equal(twin.predict(**BOX)[2], expected)
        assert np.array_equal(predictor.predict(**BOX)[2], expected)


def test_a_recipe_for_every_type_of_device_that_has_recipes() -> None:
    assert FASTEST_FP32.keys() == {"cpu", "cuda"}
    names = chain.from_iterable(FASTEST_FP32.values())
    assert all(RECIPES[name].dtype == torch.float32 for name in names)


def test_a_recipe_that_is_asked_for_runs_once_the_model_is_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sam = plain()
    ask_for(sam, "bf16_blocked")
    twin = pickle.loads(pickle.dumps(copy.deepcopy(sam)))
    assert {p.dtype for p in twin.parameters()} == {torch.float32}
    for each in (sam, twin):
        first, second = SamPredictor(each), SamPredictor(each)
        for predictor in (first, second):
            predictor.set_image(IMAGE)
            assert "recipe    bf16_blocked (" in predictor.describe()
        assert {p.dtype for p in each.image_encoder.parameters()} == {torch.bfloat16}
        assert first.features is not None and second.features is not None
        assert torch.equal(first.features, second.features)
    assert "runs the recipe bf16_blocked: asked for" in caplog.text


def test_a_recipe_that_the_device_cannot_run_is_refused() -> None:
    sam = plain()
    ask_for(sam, "fused")
    with pytest.raises(UnsupportedRecipeError, match="NVIDIA"):
        SamPredictor(sam).set_image(IMAGE)
    with pytest.raises(RecipeError, match="unknown recipe 'fast'"):
        ask_for(sam, "fast")


def test_a_changed_model_is_not_converted() -> None:
    sam = plain()
    ask_for(sam, "bf16_blocked")
    handle = sam.image_encoder.register_forward_hook(lambda *_: None)
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    assert {p.dtype for p in sam.parameters()} == {torch.float32}
    handle.remove()
    predictor.set_image(IMAGE)
    assert {p.dtype for p in sam.image_encoder.parameters()} == {torch.bfloat16}


def test_a_recipe_for_the_whole_registry() -> None:
    try:
        ask_for_all("bf16_blocked")
        sam = sam_model_registry["vit_xs"]()
    finally:
        ask_for_all(None)
    assert "recipe    bf16_blocked (" in SamPredictor(sam).describe()
    assert "recipe    fp32_onednn (" in SamPredictor(sam_model_registry["vit_xs"]()).describe()
    with pytest.raises(RecipeError, match="unknown recipe 'fast'"):
        ask_for_all("fast")
    assert build_sam is sam_model_registry["default"]


def test_on_a_cpu_the_fast_registry_is_auto_and_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = SamPredictor(sam_model_fast_registry["vit_xs"]())
        predictor.set_image(IMAGE)
        result = predictor.predict(**BOX)[2]
    chosen = samfast.load("vit_xs", device="cpu", batch_size=1)
    assert f"recipe    {chosen.recipe_name} (" in predictor.describe()
    loaded = SamPredictor(chosen)
    loaded.set_image(IMAGE)
    assert np.array_equal(result, loaded.predict(**BOX)[2])
