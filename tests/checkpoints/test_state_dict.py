"""Reading good and bad checkpoints, and loading them into models of the same or another size."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import threading
import time
import zipfile
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samfast.checkpoints.identify import config_of
from samfast.checkpoints.state_dict import load_checkpoint, load_into, read_state
from samfast.errors import CheckpointError, CheckpointNotFoundError
from samfast.model.config import CONFIGS
from samfast.model.sam import build
from tests import oracle
from tests.model.tiny import TINY, random_sam


@pytest.fixture(autouse=True)
def tiny_is_known(monkeypatch):
    monkeypatch.setitem(CONFIGS, "tiny", TINY)


@pytest.fixture(scope="module")
def state():
    return random_sam().state_dict()


def assert_same(loaded, expected):
    assert loaded.keys() == expected.keys()
    for key, value in loaded.items():
        assert value.dtype == torch.float32, key
        assert torch.equal(value, expected[key]), key


def refused(path, *words, name=None, error=CheckpointError):
    """The message of the refusal: one line that names the file and has these words."""

    def load():
        model, state = load_checkpoint(path, name)
        load_into(build(CONFIGS[model]), state, str(path))

    with pytest.raises(error) as caught:
        load()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


# --------------------------------------------------------------------------------------- good files


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin", "anything"])
def test_formats_are_recognised_by_content(state, tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    if suffix in ("safetensors", "anything"):
        save_file(state, path)
    else:
        torch.save(state, path)
    name, loaded = load_checkpoint(path)
    assert name == "tiny"
    assert_same(loaded, state)


def test_a_pth_is_mapped_and_only_weights_are_read(state, tmp_path, monkeypatch):
    torch.save(state, tmp_path / "a.pth")
    calls = []
    real = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **kwargs: calls.append(kwargs) or real(*args, **kwargs)
    )
    load_checkpoint(tmp_path / "a.pth")
    assert calls == [{"map_location": "cpu", "weights_only": True, "mmap": True}]


def test_the_format_before_torch_1_6(state, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_same(load_checkpoint(path, "tiny")[1], state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(state, tmp_path, dtype):
    half = {key: value.to(dtype) for key, value in state.items()}
    torch.save(half, tmp_path / "half.pth")
    save_file(half, tmp_path / "half.safetensors")
    for path in tmp_path.iterdir():
        assert_same(load_checkpoint(path)[1], {key: value.float() for key, value in half.items()})


def test_double_precision_is_rounded(state, tmp_path):
    torch.save({key: value.double() for key, value in state.items()}, tmp_path / "a.pth")
    assert_same(load_checkpoint(tmp_path / "a.pth")[1], state)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


WRAPPINGS = {
    "model": lambda s: {
        "model": s,
        "optimizer": {"state": {0: {"step": torch.ones(1)}}},
        "epoch": 3,
    },
    "state_dict": lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 1e-4}},
    "model_state_dict": lambda s: {"epoch": 1, "model_state_dict": s, "loss": 0.5},
    "DataParallel": lambda s: prefixed(s, "module."),
    "DataParallel in model": lambda s: {"model": prefixed(s, "module.")},
    "Lightning and DataParallel": lambda s: {"state_dict": prefixed(s, "model.module.sam.")},
    "torch.compile": lambda s: prefixed(s, "_orig_mod."),
    "compiled encoder": lambda s: {
        key.replace("image_encoder.", "image_encoder._orig_mod."): value for key, value in s.items()
    },
    "twice": lambda s: {"checkpoint": {"model": s}},
    "another name": lambda s: {"my_sam": s, "step": 4},
    "average beside": lambda s: {"ema": {k: v * 2 for k, v in s.items()}, "model": s},
    "parameters": lambda s: {key: nn.Parameter(value) for key, value in s.items()},
    "pixel statistics": lambda s: {
        **s,
        "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
        "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_fine_tuners_save(state, tmp_path, wrapping):
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "tuned.pth")
    name, loaded = load_checkpoint(tmp_path / "tuned.pth")
    assert name == "tiny"
    assert_same(loaded, state)
    assert not any(tensor.requires_grad for tensor in loaded.values())


# -------------------------------------------------------------------------------------- directories


def test_a_directory_with_one_checkpoint(state, tmp_path):
    torch.save(state, tmp_path / "tuned.pth")
    (tmp_path / "README.txt").write_text("hello")
    assert_same(load_checkpoint(tmp_path)[1], state)


def test_a_directory_of_transformers_goes_before_other_files(state, tmp_path):
    torch.save({"junk": 1}, tmp_path / "optimizer.pt")
    torch.save({"junk": 1}, tmp_path / "pytorch_model.bin")
    save_file(state, tmp_path / "model.safetensors")
    assert_same(load_checkpoint(tmp_path)[1], state)


def test_shards_of_pth_files(state, tmp_path):
    keys = list(state)
    halves = {"pytorch_model-1.bin": keys[:50], "pytorch_model-2.bin": keys[50:]}
    for file, names in halves.items():
        torch.save({name: state[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in halves.items() for name in names}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same(load_checkpoint(tmp_path)[1], state)
    (tmp_path / "pytorch_model-2.bin").unlink()
    refused(index, "1 of its 2 files", "pytorch_model-2.bin", error=CheckpointNotFoundError)


@pytest.mark.parametrize("text", ["{}", "not json", '{"weight_map": ["a"]}', "[1]"])
def test_a_file_that_is_no_index(tmp_path, text):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    refused(path, "not the index")


def test_an_index_may_not_lead_elsewhere(state, tmp_path):
    torch.save(state, tmp_path / "secret.pth")
    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../secret.pth"}}))
    refused(path, "../secret.pth", "not a plain file name")


def test_an_empty_directory(tmp_path):
    refused(tmp_path, "model.safetensors", error=CheckpointNotFoundError)


def test_a_directory_with_several(state, tmp_path):
    for name in ("a.pth", "b.pth"):
        torch.save(state, tmp_path / name)
    refused(tmp_path, "2 checkpoints", "a.pth, b.pth", "path of one")


@pytest.mark.parametrize("source", ["no/such/file.pth", "x" * 5000, "a\0b"])
def test_no_such_file(source):
    refused(source, "no such file", error=CheckpointNotFoundError)


def test_an_empty_path_is_not_the_current_directory():
    with pytest.raises(CheckpointNotFoundError, match="empty path"):
        load_checkpoint("")


# ---------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"hello, world, I am no checkpoint", "not a checkpoint"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00rest", "compressed"),
        (b"\x80", "damaged"),
        (b"PK\x03\x04", "damaged"),
        (b"\x10\0\0\0\0\0\0\0{truncated", "damaged"),
    ],
)
def test_no_checkpoint_at_all(tmp_path, content, word):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    refused(path, word)


@pytest.mark.parametrize("kind", ["pth", "old.pth", "safetensors"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_truncated(state, tmp_path, kind, keep):
    path = tmp_path / f"x.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refused(path, "damaged or cut short", "again")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle 2", "pickle 4", "beside tensors"])
def test_a_malicious_pickle_is_not_executed(state, tmp_path, how):
    touched = tmp_path / "touched"
    path = tmp_path / "evil.pth"
    evil = Evil(touched)
    if how == "torch":
        torch.save(evil, path)
    elif how == "old torch":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    elif how == "beside tensors":
        torch.save({**state, "z": evil}, path)
    else:
        path.write_bytes(pickle.dumps({"model": evil}, protocol=int(how[-1])))
    message = refused(path, "not executed", "torch.save(model.state_dict()")
    assert not touched.exists()
    if how != "pickle 4":
        assert "system" in message


def test_a_whole_pickled_model_says_how_to_save_it(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(random_sam(), path)
    refused(path, "samfast.model.image_encoder.Attention", "not executed", "state_dict()")


def test_other_objects_beside_the_weights(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, path)
    refused(path, "argparse.Namespace", "not executed")


@pytest.mark.parametrize("value", [torch.ones(3), [1, 2], 5, "text"])
def test_not_a_mapping(tmp_path, value):
    path = tmp_path / "x.pth"
    torch.save(value, path)
    refused(path, type(value).__name__, "state dict")


def test_zip_archives_that_are_no_checkpoints(tmp_path):
    plain = tmp_path / "a.pth"
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(plain, "zip archive")
    program = tmp_path / "b.pth"
    with zipfile.ZipFile(
        program, "w"
    ) as archive:  # a TorchScript file has constants.pkl beside data.pkl
        archive.writestr("b/data.pkl", "x")
        archive.writestr("b/constants.pkl", "x")
    refused(program, "TorchScript")


def test_unreadable(state, tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    torch.save(state, path)

    def deny(*args, **kwargs):  # not by chmod: root may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", deny)
    refused(path, "cannot be read", "permissions")


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["mask_decoder.hf_token.weight"], "HQ-SAM"),
        (["image_encoder.blocks.0.attn.qkv.linear_a_q.weight"], "LoRA"),
        (["image_encoder.blocks.0.Adapter.spatial.0.weight"], "adapters"),
        (["mask_decoder.something"], "1 that this model does not know (mask_decoder.something)"),
    ],
)
def test_more_than_a_sam(state, tmp_path, keys, what):
    path = tmp_path / "x.pth"
    torch.save({**state, **{key: torch.ones(1) for key in keys}}, path)
    refused(path, what, keys[0])


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["sam_mask_decoder.iou_token.weight", "image_encoder.trunk.pos_embed"], "SAM 2"),
        (["mask_decoder.iou_token.weight", "vision_encoder.backbone.pos_embed"], "SAM 2"),
        (
            ["mask_decoder.iou_token.weight", "image_encoder.patch_embed.seq.0.c.weight"],
            "MobileSAM",
        ),
        (["model.0.conv.weight"], "YOLO"),
        (["layer1.weight"], "layer1.weight"),
        (["mask_decoder.iou_token.weight"], "no image encoder"),
        ([], "empty"),
    ],
)
def test_other_models_are_named(tmp_path, keys, what):
    path = tmp_path / "x.pth"
    torch.save({key: torch.ones(1) for key in keys}, path)
    refused(path, what, "give a checkpoint of")


def test_missing_tensors_are_listed(state, tmp_path):
    path = tmp_path / "x.pth"
    gone = [key for key in state if ".mlp." in key]
    torch.save({key: value for key, value in state.items() if key not in gone}, path)
    message = refused(
        path, f"lacks {len(gone)} of the {len(state)} tensors of this model", *gone[:3]
    )
    assert gone[3] not in message


def test_an_encoder_alone_is_not_enough(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(
        {key: value for key, value in state.items() if key.startswith("image_encoder")}, path
    )
    refused(path, "lacks 137 of the 174", "prompt_encoder.")


def test_wrong_shapes(state, tmp_path):
    path = tmp_path / "x.pth"
    key = "mask_decoder.mask_tokens.weight"
    torch.save({**state, key: torch.ones(7, 32)}, path)
    refused(path, key, "(7, 32)", "(4, 32)")


@pytest.mark.parametrize("shape", [(2, 5, 32), (1, 8, 7, 32), (1, 8, 8, 31), (1, 0, 0, 32)])
def test_positions_of_an_impossible_shape(state, tmp_path, shape):
    path = tmp_path / "x.pth"
    torch.save({**state, "image_encoder.pos_embed": torch.ones(shape)}, path)
    refused(path, "image_encoder.pos_embed")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(state, tmp_path, value):
    path = tmp_path / "x.safetensors"
    key = "image_encoder.neck.2.weight"
    broken = state[key].clone()
    broken[3, 2, 1, 0] = value
    save_file({**state, key: broken}, path)
    refused(path, key, "NaN or infinite")


def test_huge_values_are_finite(state, tmp_path):
    path = tmp_path / "x.safetensors"
    key = "image_encoder.neck.2.weight"
    huge = {**state, key: torch.full_like(state[key], 3e38)}  # though their sum is not
    save_file(huge, path)
    assert_same(load_checkpoint(path)[1], huge)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_wrong_dtype(state, tmp_path, dtype):
    path = tmp_path / "x.pth"
    key = "image_encoder.neck.2.weight"
    torch.save({**state, key: state[key].to(dtype)}, path)
    refused(path, key, str(dtype))


def test_tensors_without_values(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({key: value.to("meta") for key, value in state.items()}, path)
    refused(path, "no values")


def test_a_value_that_is_no_tensor(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({**state, "epoch": 3}, path)
    refused(path, "epoch", "not a tensor")


def test_weights_outside_the_sam_are_not_dropped_silently(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({**prefixed(state, "sam."), "head.weight": torch.ones(1)}, path)
    refused(path, "head.weight", "'sam.'")


def test_two_sams_are_ambiguous(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({**prefixed(state, "student."), **prefixed(state, "teacher.")}, path)
    refused(path, "student.", "teacher.")
    torch.save({"student": state, "teacher": state}, path)
    refused(path, "student", "teacher")


def test_two_tensors_of_one_name(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({**state, "module.image_encoder.pos_embed": state["image_encoder.pos_embed"]}, path)
    refused(path, "same name")


def test_other_pixel_statistics(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({**state, "pixel_mean": torch.zeros(3, 1, 1)}, path)
    refused(path, "pixel_mean", "123.675")


# -------------------------------------------------------------------------------------- which model


def test_another_model_says_which_it_is(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(state, path)
    refused(path, "holds tiny, not vit_h", "ask for tiny", name="vit_h")
    refused(path, "'vit_q'", "vit_xs, vit_b, vit_l, vit_h", name="vit_q")


def test_a_sam_of_no_known_size_can_still_be_read(tmp_path):
    sam = random_sam(replace(TINY, embed_dim=48))
    path = tmp_path / "x.pth"
    torch.save(sam.state_dict(), path)
    refused(path, "48 wide", "2 blocks", "vit_b (768 wide, 12 blocks)")
    assert_same(read_state(path), sam.state_dict())


@pytest.mark.parametrize("name", ["vit_xs", "vit_b", "vit_l", "vit_h"])
def test_every_model_is_known_by_its_shapes(name):
    with torch.device("meta"):
        config = config_of(build(CONFIGS[name]).state_dict())
    assert config == CONFIGS[name]


def test_the_image_size_of_a_checkpoint():
    assert config_of(random_sam(replace(TINY, image_size=256)).state_dict()).image_size == 256


# ------------------------------------------------------------------------------------- into a model


def test_the_same_size_is_copied_bit_for_bit(state):
    sam = build(TINY)
    assert load_into(sam, state) == ()
    assert_same(sam.state_dict(), state)
    source = state["image_encoder.pos_embed"].data_ptr()
    assert sam.image_encoder.pos_embed.data_ptr() != source  # a copy, so the file may go


def test_at_1024_with_windows_of_14_nothing_is_touched():
    config = replace(TINY, image_size=1024, window_size=14)
    sam = random_sam(config)
    other = build(config)
    assert load_into(other, sam.state_dict()) == ()
    assert_same(other.state_dict(), sam.state_dict())


@pytest.mark.parametrize("side", [64, 96, 160, 256])
def test_another_image_size_is_what_the_original_computes(state, side):
    """The original resizes relative tables in its forward pass, but not its absolute positions."""
    config = replace(TINY, image_size=side)
    sam = build(config)
    notes = load_into(sam, state)
    grid = side // 16
    assert notes == (
        f"absolute positions resized from 8x8 to {grid}x{grid} tokens",
        "relative positions of 2 tables resized",
    )
    assert sam.image_encoder.pos_embed.shape == (1, grid, grid, 32)

    encoder = oracle.load().modeling.ImageEncoderViT(
        img_size=TINY.image_size,
        embed_dim=TINY.embed_dim,
        depth=TINY.depth,
        num_heads=TINY.num_heads,
        out_chans=TINY.out_chans,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=TINY.window_size,
        global_attn_indexes=TINY.global_attn_indexes,
    )
    prefix = "image_encoder."
    encoder.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    assert (
        encoder.blocks[1].attn.rel_pos_h.shape[0] == 15
    )  # not resized: the original does it as it runs
    encoder.pos_embed = nn.Parameter(
        torch.nn.functional.interpolate(
            state["image_encoder.pos_embed"].permute(0, 3, 1, 2), size=(grid, grid), mode="bicubic"
        ).permute(0, 2, 3, 1)
    )
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, actual = encoder(pixels), sam.image_encoder(pixels)
    assert (actual - expected).norm() <= 1e-5 * expected.norm()
    # The tables matter: with other ones the answer is another.
    with torch.no_grad():
        sam.image_encoder.blocks[1].attn.rel_pos_h.add_(
            0.5 * torch.randn_like(sam.image_encoder.blocks[1].attn.rel_pos_h)
        )
        assert (sam.image_encoder(pixels) - expected).norm() > 1e-3 * expected.norm()


def test_another_window_is_resized_too(state):
    sam = build(replace(TINY, window_size=5))
    assert load_into(sam, state) == ("relative positions of 2 tables resized",)
    assert sam.image_encoder.blocks[0].attn.rel_pos_h.shape == (9, 16)
    assert torch.equal(
        sam.image_encoder.blocks[1].attn.rel_pos_h, state["image_encoder.blocks.1.attn.rel_pos_h"]
    )


@pytest.mark.parametrize(("indexes", "word"), [((0, 1), "in windows of 3"), ((), "globally")])
def test_windowed_blocks_do_not_become_global_or_the_reverse(state, indexes, word):
    sam = build(replace(TINY, global_attn_indexes=indexes))
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"mine.pth: .*{word}.*global_attn_indexes"):
        load_into(sam, state, "mine.pth")
    assert_same(sam.state_dict(), before)


def test_loading_is_strict_and_changes_nothing_on_failure(state):
    sam = build(TINY)
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    wrong = [
        {key: value for key, value in state.items() if "iou_token" not in key},
        {**state, "extra": torch.ones(1)},
        {**state, "mask_decoder.iou_token.weight": torch.ones(1, 8)},
        {**state, "image_encoder.blocks.0.attn.rel_pos_h": torch.ones(4, 16)},
        {**state, "image_encoder.blocks.0.attn.rel_pos_h": torch.ones(5, 8)},
    ]
    for bad in wrong:
        with pytest.raises(CheckpointError, match=r"mine\.pth: "):
            load_into(sam, bad, "mine.pth")
    assert_same(sam.state_dict(), before)


def test_another_known_model_is_named(state, monkeypatch):
    monkeypatch.setitem(CONFIGS, "deep", replace(TINY, name="deep", depth=3))
    with pytest.raises(
        CheckpointError, match=r"mine\.pth: holds tiny, but this model is deep; build tiny"
    ):
        load_into(build(CONFIGS["deep"]), state, "mine.pth")


def test_a_model_in_half_precision_takes_the_weights_in_its_own(state):
    sam = build(TINY).bfloat16()
    load_into(sam, state)
    key = "image_encoder.neck.0.weight"
    assert torch.equal(sam.state_dict()[key], state[key].bfloat16())


def members(path):
    with zipfile.ZipFile(path) as archive:
        return archive.infolist()


def test_a_changed_byte_in_any_member_of_a_pth_is_found(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(state, path)
    content = path.read_bytes()
    filled = [member for member in members(path) if member.file_size]
    for member in filled[:: len(filled) // 12]:
        header = content[member.header_offset : member.header_offset + 30]
        start = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        damaged = bytearray(content)
        damaged[start + member.file_size // 2] ^= 1
        path.write_bytes(damaged)
        refused(path, "damaged", "Bad CRC-32", "download or copy it again")
    path.write_bytes(content)
    assert_same(read_state(path), state)


def test_no_two_threads_read_one_archive(state, tmp_path, monkeypatch):
    # Python 3.12 and 3.13 then find good members damaged, but not 3.11.
    path = tmp_path / "x.pth"
    threads: dict[int, set[int]] = {}
    archives = []
    torch.save(state, path)
    plain_open = zipfile.ZipFile.open

    def slow_open(archive, *arguments, **options):
        archives.append(archive)  # kept, so that no other has its id
        threads.setdefault(id(archive), set()).add(threading.get_ident())
        time.sleep(0.005)
        return plain_open(archive, *arguments, **options)

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(zipfile.ZipFile, "open", slow_open)
    assert_same(read_state(path), state)
    assert len(set().union(*threads.values())) > 1
    assert all(len(each) == 1 for each in threads.values())


def test_a_pth_that_torch_saved_without_checksums_loads(state, tmp_path):
    path = tmp_path / "x.pth"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert {member.CRC for member in members(path)} == {0}
    assert_same(read_state(path), state)


def test_a_pth_that_was_packed_again_with_compression_is_refused(state, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(state, path)
    packed = tmp_path / "packed.pth"
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    refused(packed, "members are compressed", "zip -0")


def test_an_index_that_lists_an_index(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": path.name}}))
    refused(path, "an index, among its files")
    path.write_text('{"weight_map": ' + "[" * 100_000)
    refused(path, "not the index")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"sam_mask_decoder.iou_token.weight": torch.zeros(1)}}, "SAM 2"),
        ({"model": {"image_encoder.trunk.pos_embed": torch.zeros(1)}}, "SAM 2"),
        ({"state_dict": {"lora": {"q.lora_A.weight": torch.zeros(1)}}}, "merge_and_unload"),
        ({"w_a_000": torch.zeros(1), "w_b_000": torch.zeros(1)}, "merge_and_unload"),
    ],
)
def test_other_models_in_a_container_are_named(tmp_path, content, words):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    refused(path, "no SAM in it", words)


def test_lora_weights_beside_a_decoder(tmp_path, state):
    path = tmp_path / "lora.pth"
    decoder = {key: value for key, value in state.items() if key.startswith("mask_decoder")}
    torch.save(decoder | {"w_a_000": torch.zeros(1)}, path)
    refused(path, "LoRA")


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b"", b"\r\n"])
def test_a_web_page(tmp_path, start):
    path = tmp_path / "sam.pth"
    path.write_bytes(start + b"<!DOCTYPE html><html>not found")
    refused(path, "a web page")
