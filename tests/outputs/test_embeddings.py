"""Files of embeddings: answers are those from before, and a changed file is refused."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import samfast
from samfast.errors import EmbeddingsError, UnsupportedRecipeError
from samfast.outputs.embeddings import (
    _crc32,
    _sha256,
    embeddings_from_bytes,
    embeddings_to_bytes,
)
from samfast.recipes import RECIPES
from samfast.types import Embeddings, Masks, Prompts
from tests.model.tiny import fast, random_sam

PHOTOS = [np.full((60, 80, 3), 90, np.uint8), np.full((128, 128, 3), 20, np.uint8)]


@pytest.fixture(scope="module")
def embeddings() -> Embeddings:
    return fast(random_sam(), RECIPES["fp32_sdpa"], batch_size=2).embed(PHOTOS)


@pytest.fixture
def file(tmp_path: Path, embeddings: Embeddings) -> Path:
    samfast.save_embeddings(embeddings, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


# ---------------------------------------------------------------------------------- the same answer


def on_a_cpu(name: str) -> samfast.SamFast:
    """vit_xs under a recipe, at a small input; skips a recipe that needs a GPU."""
    try:
        return samfast.load("vit_xs", device="cpu", recipe=name, image_size=128, batch_size=2)
    except UnsupportedRecipeError:
        pytest.skip("needs a GPU")


def unaligned(features: torch.Tensor) -> torch.Tensor:
    """The same features, which begin three values after an address that libraries like."""
    memory = torch.empty(features.numel() + 3, dtype=features.dtype)[3:].view(features.shape)
    return memory.copy_(features)


def assert_equal_bits(got: list[Masks], wanted: list[Masks]) -> None:
    for one, other in zip(got, wanted, strict=True):
        for field in ("masks", "iou", "low_res"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field


@pytest.mark.parametrize("name", RECIPES)
def test_an_answer_does_not_depend_on_the_features_memory(tmp_path: Path, name: str) -> None:
    sam = on_a_cpu(name)
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 255, (60, 80, 3), dtype=np.uint8) for _ in range(3)]
    asked = [Prompts(points=[[[30, 20]], [[10, 40]]], labels=[[1], [1]], boxes=None)] * 3
    embeddings = sam.embed(photos)
    wanted = sam.predict(embeddings, asked)
    samfast.save_embeddings(embeddings, tmp_path / "a.safetensors")
    loaded = samfast.load_embeddings(tmp_path / "a.safetensors")
    assert loaded.features.stride() == embeddings.features.stride()
    others: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "contiguous": torch.Tensor.contiguous,
        "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "every second of six": lambda x: x.repeat_interleave(2, 0)[::2],
        "unaligned": unaligned,
    }
    assert_equal_bits(sam.predict(loaded, asked), wanted)
    for change in others.values():
        changed = replace(embeddings, features=change(embeddings.features))
        assert_equal_bits(sam.predict(changed, asked), wanted)
    # A part of the batch is answered as a copy of that part.
    for part in (slice(1, 2), slice(1, 3)):
        copied = replace(embeddings[part], features=embeddings.features[part].contiguous())
        assert_equal_bits(
            sam.predict(embeddings[part], asked[part]), sam.predict(copied, asked[part])
        )
        assert_equal_bits(sam.predict(loaded[part], asked[part]), sam.predict(copied, asked[part]))


@pytest.mark.parametrize("name", ["bf16_blocked", "fp32_blocked"])
def test_an_answer_does_not_depend_on_the_place_in_the_batch(name: str) -> None:
    sam = on_a_cpu(name)
    embeddings = sam.embed([PHOTOS[1], PHOTOS[0], PHOTOS[1]])
    asked = [Prompts(boxes=[[5, 6, 50, 40]])] * 3
    together = sam.predict(embeddings, asked)
    for index in range(3):
        assert_equal_bits(sam.predict(embeddings[index], asked[:1]), together[index : index + 1])


def test_equal_embeddings_make_equal_bytes(embeddings: Embeddings) -> None:
    # safetensors writes metadata in another order in each call.
    files = {embeddings_to_bytes(embeddings) for _ in range(8)}
    assert len(files) == 1


def test_a_file_without_sha256_is_read_and_checked(file: Path, embeddings: Embeddings) -> None:
    def as_before(metadata: dict[str, str]) -> None:
        metadata["format"] = "samfast-embeddings-1"
        del metadata["sha256"], metadata["crc32"]

    rewrite(file, metadata=as_before, sign=False)
    back = samfast.load_embeddings(file)
    assert torch.equal(back.features, embeddings.features)
    assert back.original_sizes == embeddings.original_sizes
    rewrite(file, sizes=lambda sizes: sizes["input_sizes"].reverse(), sign=False)
    with pytest.raises(EmbeddingsError, match="an image of 60 x 80 resized to 128 x 128"):
        samfast.load_embeddings(file)


# ------------------------------------------------------------------------------- files that changed


def rewrite(
    path: Path,
    *,
    features: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    sizes: Callable[[dict[str, Any]], object] = lambda sizes: None,
    metadata: Callable[[dict[str, str]], object] = lambda metadata: None,
    more: dict[str, torch.Tensor] | None = None,
    sign: bool = True,
) -> None:
    """Change parts of a file, and its checksum with them unless `sign` is false."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    about = header["__metadata__"]
    written = json.loads(about["sizes"])
    sizes(written)
    about["sizes"] = json.dumps(written)
    tensor = features(load(content)["features"]).contiguous()
    metadata(about)
    if sign:
        about["sha256"] = _sha256(tensor, about)
        about["crc32"] = _crc32(tensor, about)
    path.write_bytes(save({"features": tensor, **(more or {})}, metadata=about))


def set_item(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda mapping: mapping.__setitem__(key, value)


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda mapping: mapping.pop(key)


def first(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda sizes: sizes[key].__setitem__(0, value)


def nan_at_the_end(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[-1, -1, -1, -1] = float("nan")
    return x


SIGNED: dict[str, dict[str, Any]] = {
    "float64": {"features": lambda x: x.double()},
    "whole numbers": {"features": lambda x: x.int()},
    "bool": {"features": lambda x: x > 0},
    "three dimensions": {"features": lambda x: x[0]},
    "five dimensions": {"features": lambda x: x[None]},
    "no image": {"features": lambda x: x[:0]},
    "fewer images": {"features": lambda x: x[:1]},
    "more images": {"features": lambda x: torch.cat([x, x])},
    "not square": {"features": lambda x: x[..., :-1]},
    "another grid": {"features": lambda x: x[:, :, :5, :5]},
    "NaN": {"features": nan_at_the_end},
    "infinity": {"features": lambda x: x / 0},
    "another tensor": {"more": {"mask": torch.ones(2)}},
    "size of 0": {"sizes": first("original_sizes", [0, 80])},
    "negative size": {"sizes": first("original_sizes", [-60, 80])},
    "fractional size": {"sizes": first("original_sizes", [60.5, 80])},
    "boolean size": {"sizes": first("original_sizes", [True, 80])},
    "text for a size": {"sizes": first("original_sizes", "60")},
    "three numbers": {"sizes": first("original_sizes", [60, 80, 3])},
    "transposed size": {"sizes": first("original_sizes", [80, 60])},
    "huge size": {"sizes": first("original_sizes", [60, 10**9])},
    "input of another shape": {"sizes": first("input_sizes", [128, 128])},
    "input of another side": {"sizes": first("input_sizes", [48, 64])},
    "input larger than the side": {"sizes": first("input_sizes", [192, 256])},
    "one size too few": {"sizes": lambda sizes: sizes["original_sizes"].pop()},
    "one size too many": {"sizes": lambda sizes: sizes["input_sizes"].append([128, 128])},
    "no original sizes": {"sizes": drop("original_sizes")},
    "sizes of null": {"sizes": set_item("input_sizes", None)},
    "sizes that are no mapping": {"metadata": set_item("sizes", "[]")},
    "sizes that are no JSON": {"metadata": set_item("sizes", "{")},
    "deeply nested sizes": {"metadata": set_item("sizes", "[" * 100_000)},
    "no sizes": {"metadata": drop("sizes")},
    "no fingerprint": {"metadata": drop("fingerprint")},
    "another format": {"metadata": set_item("format", "samfast-embeddings-3")},
    "no format": {"metadata": drop("format")},
}
"""Files that could only be made on purpose: their checksum is right."""

UNSIGNED: dict[str, dict[str, Any]] = {
    "a feature": {"features": lambda x: x + 1e-3},
    "half precision": {"features": lambda x: x.half()},
    "the order of the images": {"features": lambda x: x.flip(0)},
    "sizes that fit": {"sizes": set_item("original_sizes", [[30, 40], [64, 64]])},
    "the fingerprint": {"metadata": set_item("fingerprint", "0" * 64)},
    "a new field": {"metadata": set_item("note", "mine")},
    "the checksum": {"metadata": set_item("sha256", "0" * 64)},
    "no checksum": {"metadata": drop("sha256")},
}
"""What only the checksum can tell."""


@pytest.mark.parametrize("change", SIGNED)
def test_a_file_whose_parts_do_not_fit_is_refused(file: Path, change: str) -> None:
    rewrite(file, **SIGNED[change])
    with pytest.raises(EmbeddingsError, match=re.escape(str(file))):
        samfast.load_embeddings(file)


@pytest.mark.parametrize("change", UNSIGNED)
def test_a_file_that_changed_is_refused(file: Path, change: str) -> None:
    rewrite(file, **UNSIGNED[change], sign=False)
    with pytest.raises(EmbeddingsError, match=r"a\.safetensors: damaged"):
        samfast.load_embeddings(file)


def flipped(content: bytes) -> Iterator[bytes]:
    """The content with one bit another, at places over all of it and all over its header."""
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for place in {*range(0, header, 3), *np.linspace(0, len(content) - 1, 60).astype(int).tolist()}:
        damaged = bytearray(content)
        damaged[place] ^= 4
        yield bytes(damaged)


def test_every_flipped_bit_is_found(file: Path) -> None:
    for damaged in flipped(file.read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(EmbeddingsError, match=r"a\.safetensors"):
            samfast.load_embeddings(file)


def test_every_flipped_bit_is_found_by_the_crc32_alone(file: Path) -> None:
    content = file.read_bytes()
    for damaged in (*flipped(content), content[:-100], content + b"0", b""):
        with pytest.raises(EmbeddingsError, match=r"^a:"):
            embeddings_from_bytes(damaged, "a", prefer_crc32=True)


@pytest.mark.parametrize("change", UNSIGNED)
def test_a_file_that_changed_is_refused_by_the_crc32_alone(file: Path, change: str) -> None:
    rewrite(file, **UNSIGNED[change], sign=False)
    with pytest.raises(EmbeddingsError, match=r"^a: damaged"):
        embeddings_from_bytes(file.read_bytes(), "a", prefer_crc32=True)


def test_a_file_without_crc32_is_compared_by_its_sha256(file: Path, embeddings: Embeddings) -> None:
    rewrite(file, metadata=drop("crc32"), sign=False)
    assert samfast.load_embeddings(file) == embeddings
    back = embeddings_from_bytes(file.read_bytes(), "a", prefer_crc32=True)
    assert back == embeddings
    rewrite(file, features=lambda x: x + 1e-3, sign=False)
    with pytest.raises(EmbeddingsError, match="checksum is wrong"):
        embeddings_from_bytes(file.read_bytes(), "a", prefer_crc32=True)


def test_a_header_that_promises_too_much_is_refused_before_it_is_read(file: Path) -> None:
    """The file has the length that its header says, as holes that take no space on the disk."""
    shape, count = [2, 32, 1 << 12, 1 << 12], 1 << 30
    sizes = {"original_sizes": [[60, 80]] * 2, "input_sizes": [[96, 128]] * 2}
    about = {"format": "samfast-embeddings-2", "fingerprint": "0", "sizes": json.dumps(sizes)}
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * count]}
    header = json.dumps({"__metadata__": about, "features": entry}).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        out.truncate(8 + len(header) + 4 * count)
    with pytest.raises(EmbeddingsError, match="features of 4096 x 4096 for an input side of 128"):
        samfast.load_embeddings(file)


# --------------------------------------------------------------------- embeddings that were changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_sizes": ((96, 128), (96, 128))}, "embedding 1: an image of 128 x 128"),
        ({"original_sizes": ((60, 80), (0, 128))}, "embedding 1: .*no pixels"),
        ({"input_sizes": ((96, 128),)}, "2 original and 1 input sizes"),
        ({"original_sizes": ((60, 80),)}, "the features of these 1 embeddings"),
        ({"features": torch.zeros(2, 32, 7, 8)}, r"not floats of \(2, 32, 8, 8\)"),
        ({"features": torch.zeros(2, 32, 8, 8, dtype=torch.int32)}, "torch.int32"),
        ({"features": torch.zeros(2, 32, 8, 8, device="meta")}, r"embeddings\.to\(sam\.device\)"),
    ],
)
def test_embeddings_that_do_not_fit_the_model_are_refused(
    embeddings: Embeddings, change: dict[str, Any], words: str
) -> None:
    sam = fast(random_sam(), RECIPES["fp32_sdpa"])
    with pytest.raises(EmbeddingsError, match=words):
        sam.predict(replace(embeddings, **change), [Prompts(boxes=[[0, 0, 9, 9]])] * 2)
