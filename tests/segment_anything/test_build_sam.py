"""The registries build what the original's do."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samfast import attention, segment_anything
from samfast.attention import auto
from samfast.checkpoints import resolve
from samfast.errors import CheckpointError, CheckpointNotFoundError
from samfast.model.config import SamConfig
from samfast.model.sam import Sam, build
from samfast.recipes import RECIPES, Recipe
from samfast.segment_anything.build_sam import _build_sam, _fast
from samfast.segment_anything.modeling import ImageEncoderViT
from tests.pairs import SMALL, original, pair, relative_error

WIDTH, DEPTH, HEADS, GLOBAL = 32, 2, 2, [1]


def tiny(checkpoint=None) -> Sam:
    return _build_sam(WIDTH, DEPTH, HEADS, GLOBAL, checkpoint)


def test_without_a_checkpoint_weights_are_random_as_the_originals() -> None:
    torch.manual_seed(3)
    theirs = original(SamConfig("custom", WIDTH, DEPTH, HEADS, tuple(GLOBAL)))
    torch.manual_seed(3)
    ours = tiny()
    assert not ours.training
    assert isinstance(ours.image_encoder, ImageEncoderViT)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_with_a_checkpoint(tmp_path: Path) -> None:
    saved = tiny()
    torch.save(saved.state_dict(), tmp_path / "tiny.pth")
    loaded = tiny(str(tmp_path / "tiny.pth"))
    assert all(
        torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True)
    )


def test_bad_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        tiny(tmp_path / "nowhere.pth")
    torch.save(_build_sam(48, DEPTH, HEADS, GLOBAL).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        tiny(tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h", "default"])
def test_names(name: str) -> None:
    with torch.device("meta"):
        sam = segment_anything.sam_model_registry[name]()
    widths = {"vit_b": (768, 12), "vit_l": (1024, 24), "vit_h": (1280, 32), "default": (1280, 32)}
    assert sam.image_encoder.pos_embed is not None
    assert (sam.image_encoder.pos_embed.shape[-1], len(sam.image_encoder.blocks)) == widths[name]
    assert sam.image_encoder.img_size == 1024


def test_vit_xs_has_its_packaged_weights() -> None:
    first, second = (
        segment_anything.sam_model_registry["vit_xs"](),
        segment_anything.build_sam_vit_xs(resolve("vit_xs")),
    )
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_blocks_attend_by_the_fastest_means() -> None:
    assert all(block.attn.attend is auto.attend for block in tiny().image_encoder.blocks)
    assert inspect.signature(ImageEncoderViT) == inspect.signature(ImageEncoderViT.__mro__[1])
    for device in ("cpu", "cuda"):
        for dtype in (torch.float32, torch.bfloat16):
            for in_place in (True, False):
                assert (
                    auto.fastest(torch.device(device), dtype, in_place)
                    in attention.IMPLEMENTATIONS.values()
                )
    assert auto.fastest(torch.device("cpu"), torch.bfloat16, False) is not attention.get(
        "blocked"
    ), "it has no gradients"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_auto_chooses_is_the_reference(dtype: torch.dtype) -> None:
    qkv = torch.randn(2, 10, 12, 3 * 32, dtype=dtype)
    tables = [torch.randn(length, 16, dtype=dtype) for length in (19, 23)]
    given = {"num_heads": 2, "window": 0, "pad": None}
    expected = attention.get("reference")(*(t.double() for t in (qkv, *tables)), **given)
    error = (auto.attend(qkv, *tables, **given) - expected).norm() / expected.norm()
    assert float(error) < (1e-6 if dtype == torch.float32 else 2e-2)
    wanted = qkv.clone().requires_grad_()
    auto.attend(wanted, *tables, **given).sum().backward()
    assert wanted.grad is not None and torch.isfinite(wanted.grad).all()


def test_fast_registry() -> None:
    assert set(segment_anything.sam_model_fast_registry) == set(segment_anything.sam_model_registry)
    parameters = inspect.signature(segment_anything.sam_model_fast_registry["vit_b"]).parameters
    assert [(p.name, p.default) for p in parameters.values()] == [
        ("checkpoint", None),
        ("compile_mode", "max-autotune"),
        ("dtype", torch.bfloat16),
    ]
    exact = tiny()

    def asked(*arguments: Any) -> str | Recipe:
        sam = _fast(lambda checkpoint: copy.deepcopy(exact))(*arguments)
        assert list(sam.state_dict()) == list(exact.state_dict())
        assert sam.image_encoder._compiled_call_impl is None
        recipe: str | Recipe = vars(sam)["asked_recipe"].recipe
        return recipe

    assert asked() == asked(None, "max-autotune", torch.bfloat16) == "auto"
    sdpa = RECIPES["sdpa"]
    assert asked(None, "reduce-overhead") == replace(sdpa, compile="reduce-overhead")
    assert asked(None, None, torch.float16) == replace(sdpa, compile=None, dtype=torch.float16)


def test_copies() -> None:
    _, sam = pair()
    sam = build(SMALL, encoder=ImageEncoderViT)
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        expected = sam.image_encoder(image)
    stream = io.BytesIO()
    torch.save(sam, stream)
    stream.seek(0)
    for twin in (
        copy.deepcopy(sam),
        pickle.loads(pickle.dumps(sam)),
        torch.load(stream, weights_only=False),
    ):
        assert type(twin.image_encoder) is ImageEncoderViT
        with torch.no_grad():
            assert torch.equal(twin.image_encoder(image), expected)
            next(twin.image_encoder.parameters()).zero_()
            assert relative_error(sam.image_encoder(image), expected) == 0
