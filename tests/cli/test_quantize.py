"""`samfast quantize`: files that load again, photos that are used, and refusals before any work."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import samfast
from samfast.cli.common_options import name_and_checkpoint
from samfast.cli.console import CommandLineError
from samfast.linear import prune_layerwise
from samfast.model.config import CONFIGS
from tests.linear.pattern_24 import satisfies_24
from tests.model.tiny import TINY, random_sam


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, "tiny", TINY)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "tiny.safetensors"
    save_file(random_sam().state_dict(), path)
    return path


def test_int8_needs_no_photos(run, checkpoint, tmp_path):
    out = tmp_path / "int8.safetensors"
    code, text, err = run("quantize", checkpoint, "--recipe", "int8", "--out", out)
    assert (code, err) == (0, "")
    assert text.startswith(f"{out}: tiny, int8 (qkv, proj, lin1, lin2), ")
    sam = samfast.load(None, checkpoint=out, device="cpu")
    assert sam.recipe.quantize == "int8"
    source = samfast.load(None, checkpoint=checkpoint, device="cpu", recipe="fp32")
    assert sam.fingerprint == source.fingerprint


def test_photos_that_are_not_needed_are_not_read(run, checkpoint, tmp_path):
    code, _, err = run(
        "quantize", checkpoint, "nowhere.jpg", "--recipe", "fp8", "--out", tmp_path / "a"
    )
    assert code == 0
    assert err == "samfast: recipe fp8 needs no photos; those given are not read\n"


def test_pruning_uses_photos_spread_over_those_given(
    run, checkpoint, photos, tmp_path, monkeypatch
):
    used = []
    prune = prune_layerwise.prune_layerwise

    def spy(sam, images, layers, **rest):
        used.extend(images)
        return prune(sam, images, layers, **rest)

    monkeypatch.setattr(prune_layerwise, "prune_layerwise", spy)
    out = tmp_path / "sparse.safetensors"
    code, text, err = run(
        "quantize", checkpoint, photos, "--recipe", "int8_2:4", "--out", out, "--limit", 2
    )
    assert (code, err) == (0, "")
    assert "pruned 8 layers; on 2 photos their outputs are off by " in text
    assert "int8 (qkv, proj, lin1, lin2) and 2:4 (qkv, proj, lin1, lin2)" in text
    assert [tuple(image.shape) for image in used] == [(1, 3, 128, 128)] * 2
    weights = [value for value in load_file(out).values() if value.dtype == torch.int8]
    assert len(weights) == 8 and all(satisfies_24(weight) for weight in weights)


def test_a_bad_photo_is_reported_and_the_rest_are_used(run, checkpoint, photos, tmp_path):
    (photos / "b.png").write_bytes(b"no picture")
    out = tmp_path / "sparse.safetensors"
    code, text, err = run("quantize", checkpoint, photos, "--recipe", "2:4", "--out", out)
    assert code == 1 and "b.png" in err and len(err.splitlines()) == 1
    assert "on 2 photos" in text and out.is_file()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--recipe", "2:4", "--out", "o"), "needs photos"),
        (("photos/d.png", "--recipe", "2:4", "--out", "o"), "needs photos"),
        (("--recipe", "bf16", "--out", "o"), "nothing to save"),
        (("--recipe", "int9", "--out", "o"), "unknown recipe"),
        (("--recipe", "int8", "--out", "photos"), "that is a directory"),
        (("--recipe", "int8", "--out", "none/o"), "there is no directory none"),
        (("--recipe", "int8", "--out", "{checkpoint}"), "the checkpoint itself"),
        (("--recipe", "int8", "--out", "o", "--model", "vit_b"), "holds tiny, not vit_b"),
        (("--recipe", "int8"), "--out"),
        (("--out", "o"), "--recipe"),
    ],
)
def test_wrong_usage_is_one_line(run, checkpoint, photos, argv, says):
    before = checkpoint.read_bytes()
    code, out, err = run(
        "quantize", checkpoint, *(part.format(checkpoint=checkpoint) for part in argv)
    )
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert checkpoint.read_bytes() == before


def test_without_a_usable_photo_nothing_is_pruned(run, checkpoint, photos):
    for name in "abc":
        (photos / f"{name}.png").write_bytes(b"no picture")
    code, out, err = run("quantize", checkpoint, photos, "--recipe", "2:4", "--out", "o")
    assert (code, out) == (2, "") and "no photo could be used" in err.splitlines()[-1]


def test_a_quantized_file_is_not_quantized_again(run, checkpoint, tmp_path):
    out = tmp_path / "int8.safetensors"
    assert run("quantize", checkpoint, "--recipe", "int8", "--out", out)[0] == 0
    code, _, err = run("quantize", out, "--recipe", "fp8", "--out", tmp_path / "again.safetensors")
    assert code == 2 and "the checkpoint that it was made from" in err


def test_a_model_s_name_stands_for_its_published_weights():
    assert name_and_checkpoint("vit_xs", None) == ("vit_xs", None)
    assert name_and_checkpoint("vit_xs", "vit_xs") == ("vit_xs", None)
    assert name_and_checkpoint("some.pth", "vit_b") == ("vit_b", "some.pth")
    with pytest.raises(CommandLineError, match="leave --model out"):
        name_and_checkpoint("vit_xs", "vit_b")
