"""Rivals get our weights and our sizes; the checkout of segment-anything-fast is a stand-in of the
same make."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from samfast.bench import rivals, samples
from samfast.bench.parity import relative_error
from samfast.errors import MissingExtraError, UnsupportedRecipeError
from samfast.images import input_size
from samfast.model.config import CONFIGS
from samfast.model.sam import build
from samfast.recipes import get
from samfast.types import Embeddings
from tests import oracle
from tests.model.tiny import TINY, fast, random_sam

CPU = torch.device("cpu")
# The original's sizes but for a depth and a width that are quick.
SHALLOW = replace(
    CONFIGS["vit_b"], name="shallow", embed_dim=32, depth=2, num_heads=2, global_attn_indexes=(1,)
)
# transformers' rival is told the encoder's sizes only, which may be any.
SMALL = replace(TINY, name="small", out_chans=256, decoder_mlp_dim=2048, decoder_heads=8)
FAST = "segment_anything_fast"


@pytest.fixture(autouse=True)
def _configs(monkeypatch):
    monkeypatch.setitem(CONFIGS, "shallow", SHALLOW)
    monkeypatch.setitem(CONFIGS, "tiny", TINY)
    monkeypatch.setitem(CONFIGS, "small", SMALL)


@pytest.fixture(scope="module")
def ours():
    return random_sam(SHALLOW)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A package that builds the original and notes how it was imported."""
    oracle.load()
    package = tmp_path / "checkouts" / "repo" / FAST
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "flash_4.py").write_text(
        "import os\nSEEN = os.environ.get('SEGMENT_ANYTHING_FAST_USE_FLASH_4')\nUSE_CUSTOM_KERNEL "
        "= False\n"
        "def _autotune(configs, function):\n    return configs\n"
    )
    (package / "predictor.py").write_text(
        "import importlib\nSamPredictor = "
        "importlib.import_module('segment_anything.predictor').SamPredictor\n"
    )
    (package / "build_sam.py").write_text(
        "from . import flash_4\nimport importlib\n"
        "_build_sam = importlib.import_module('segment_anything.build_sam')._build_sam\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("SEGMENT_ANYTHING_FAST_USE_FLASH_4", "0")
    yield package.parent
    for name in [name for name in sys.modules if name.split(".")[0] == FAST]:
        del sys.modules[name]


def load(*arguments) -> Any:
    """The encoder, of which the tests look at more than what it answers."""
    return rivals.load(*arguments).encoder


def pixels(side):
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_original_answers_as_we_do(ours):
    oracle.load()
    encoder = load("rival:segment-anything", "shallow", ours.state_dict(), CPU)
    with torch.no_grad():
        assert relative_error(encoder(pixels(1024)), ours.image_encoder(pixels(1024))) < 1e-5


@torch.no_grad()
def test_the_original_s_masks_are_ours(ours):
    oracle.load()
    loaded = rivals.load("rival:segment-anything", "shallow", ours.state_dict(), CPU)
    features = loaded.encoder(pixels(1024)).expand(2, -1, -1, -1)
    assert loaded.decode is not None
    answers = loaded.decode(features, *samples.clicks(2, 1024, torch.float32, CPU))
    sam = fast(ours, get("fp32"), name="shallow")
    sizes = (samples.IMAGE_SIZE,) * 2
    embeddings = Embeddings(features, sizes, ((768, 1024),) * 2, sam.fingerprint)
    expected = sam.predict(embeddings, samples.prompts(2))
    for mask, answer in zip(answers, expected, strict=True):
        assert mask.shape == answer.masks.shape
        assert float((mask != answer.masks).float().mean()) < 1e-4


def test_vit_xs_is_built_by_its_sizes():
    oracle.load()
    state = build(CONFIGS["vit_xs"]).state_dict()
    encoder = load("rival:segment-anything", "vit_xs", state, CPU)
    assert len(encoder.blocks) == 11
    assert encoder.blocks[0].attn.num_heads == 3
    assert [block.window_size for block in encoder.blocks].count(0) == 4


def test_transformers_answers_as_we_do():
    pytest.importorskip("transformers")
    sam = random_sam(SMALL)
    encoder = load("rival:transformers", "small", sam.state_dict(), CPU)
    half = load("rival:transformers-compiled", "small", sam.state_dict(), CPU)
    with torch.no_grad():
        truth = sam.image_encoder(pixels(128))
        assert relative_error(encoder(pixels(128)), truth) < 1e-5
        answer = half(pixels(128).bfloat16())
    assert answer.dtype == torch.bfloat16
    assert relative_error(answer.float(), truth) < 0.2


def test_transformers_decodes_as_we_do():
    pytest.importorskip("transformers")
    sam = random_sam(SMALL)
    loaded = rivals.load("rival:transformers", "small", sam.state_dict(), CPU)
    assert loaded.decode is not None
    side, count = SMALL.image_size, 2
    points, labels = samples.clicks(count, side, torch.float32, CPU)
    with torch.no_grad():
        features = sam.image_encoder(torch.cat([pixels(side), pixels(side).flip(-1)]))
        theirs = loaded.decode(features, points, labels)
    size = samples.IMAGE_SIZE
    engine = fast(sam, get("fp32_sdpa"))
    inside = input_size(size, side)
    embeddings = Embeddings(features, (size,) * count, (inside,) * count, engine.fingerprint)
    ours = engine.predict(embeddings, samples.prompts(count))
    for masks, want in zip(theirs, ours, strict=True):
        assert masks.shape == want.masks.shape
        assert (masks != want.masks).float().mean() < 1e-4
        assert 0.01 < want.masks.float().mean() < 0.99


@pytest.mark.parametrize("parent", [False, True])
def test_segment_anything_fast_is_found_and_its_kernel_is_on(checkout, ours, parent):
    path = checkout.parent if parent else checkout
    encoder = load("rival:segment-anything-fast", "shallow", ours.state_dict(), CPU, str(path))
    flash = importlib.import_module(f"{FAST}.flash_4")
    assert flash.SEEN == "1"
    assert flash.USE_CUSTOM_KERNEL is True
    configs = [(64, 64, warps, stages) for warps in (1, 2, 4, 8) for stages in range(1, warps + 1)]
    assert {each[2:] for each in flash._autotune(configs, None)} == {
        (w, s) for w in (4, 8) for s in (1, 2, 3)
    }
    assert sys.path[0] == str(checkout)
    weight = encoder.blocks[0].attn.qkv.weight
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, ours.image_encoder.blocks[0].attn.qkv.weight.bfloat16())
    assert not encoder.training


def test_a_checkout_that_is_not_there(tmp_path, ours, monkeypatch):
    before = list(sys.path)
    monkeypatch.setitem(sys.modules, f"{FAST}.build_sam", None)
    monkeypatch.setitem(os.environ, "SEGMENT_ANYTHING_FAST_USE_FLASH_4", "0")
    for path in (None, str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(
            MissingExtraError, match=r"segment_anything_fast cannot be .*--rivals-path"
        ):
            load("rival:segment-anything-fast", "shallow", ours.state_dict(), CPU, path)
    assert sys.path == before


def test_sizes_that_the_original_does_not_build():
    with pytest.raises(UnsupportedRecipeError, match="tiny"):
        rivals.load("rival:segment-anything", "tiny", {}, CPU)
