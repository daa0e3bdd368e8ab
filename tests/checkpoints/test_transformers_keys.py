"""Keys of Meta and of transformers, compared with transformers' SamModel and the original."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samfast.checkpoints.state_dict import load_checkpoint, load_into
from samfast.checkpoints.transformers_keys import is_transformers, to_meta, to_transformers
from samfast.errors import CheckpointError
from samfast.model.config import CONFIGS
from samfast.model.sam import build
from tests import oracle
from tests.model.tiny import TINY, random_sam, transformers_sam

SHARED = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)


@pytest.fixture(scope="module")
def hf():
    return transformers_sam()


def test_ours_in_transformers_answers_the_same(hf):
    sam = random_sam(seed=1)
    hf.load_state_dict(to_transformers(sam.state_dict()), strict=True)
    generator = torch.Generator().manual_seed(2)
    side = TINY.image_size
    pixels = torch.randn(1, 3, side, side, generator=generator)
    points = torch.rand(1, 3, 2, 2, generator=generator) * side
    labels = torch.tensor([[[1, 0], [1, 1], [0, 1]]])
    boxes = torch.tensor(
        [[[10.0, 20.0, 60.0, 90.0], [0.0, 0.0, 127.0, 64.0], [30.0, 5.0, 40.0, 120.0]]]
    )
    with torch.no_grad():
        features = sam.image_encoder(pixels)
        theirs = hf.get_image_embeddings(pixels)
        torch.testing.assert_close(features, theirs, rtol=1e-4, atol=1e-5)
        assert features.std() > 0.1  # a model of zeros would agree on anything
        for given_boxes, multimask in ((None, True), (None, False), (boxes, True)):
            sparse, dense = sam.prompt_encoder(
                points=(points[0], labels[0]),
                boxes=None if given_boxes is None else given_boxes[0],
                masks=None,
            )
            masks, iou = sam.mask_decoder(
                image_embeddings=features,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
            )
            answer = hf(
                image_embeddings=features,
                input_points=points,
                input_labels=labels,
                input_boxes=given_boxes,
                multimask_output=multimask,
            )
            torch.testing.assert_close(masks, answer.pred_masks[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(iou, answer.iou_scores[0], rtol=1e-3, atol=1e-4)


def test_round_trip_from_ours_is_exact():
    state = random_sam().state_dict()
    back = to_meta(to_transformers(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_round_trip_from_theirs_is_exact(hf):
    state = hf.state_dict()
    back = to_transformers(to_meta(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_theirs_loads_strictly_into_ours(hf):
    sam = build(TINY)
    assert sam.load_state_dict(to_meta(hf.state_dict()), strict=True)
    assert torch.equal(
        sam.image_encoder.blocks[1].attn.qkv.weight, hf.vision_encoder.layers[1].attn.qkv.weight
    )


def test_the_shared_encoding_is_one_tensor_under_two_names():
    out = to_transformers(random_sam().state_dict())
    assert out[SHARED[0]] is out[SHARED[1]]
    for absent in SHARED:  # files of transformers have either or both
        one = {key: value for key, value in out.items() if key != absent}
        assert torch.equal(
            to_meta(one)["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"],
            out[SHARED[0]],
        )


def test_two_different_shared_encodings_are_refused():
    out = to_transformers(random_sam().state_dict())
    out[SHARED[1]] = out[SHARED[1]] + 1
    with pytest.raises(CheckpointError, match=r"shared_image_embedding.*differ"):
        to_meta(out)


def test_unknown_keys_survive():
    key = "vision_encoder.layers.0.attn.extra.weight"
    assert "image_encoder.blocks.0.attn.extra.weight" in to_meta({key: torch.ones(1)})
    assert "other.weight" in to_transformers({"other.weight": torch.ones(1)})


def test_layouts_are_told_apart(hf):
    assert is_transformers(hf.state_dict())
    assert not is_transformers(random_sam().state_dict())


@pytest.mark.parametrize("safe", ["directory", "file", "shards"])
def test_what_save_pretrained_writes_is_read(hf, tmp_path, monkeypatch, safe):
    monkeypatch.setitem(CONFIGS, "tiny", TINY)
    hf.save_pretrained(tmp_path, max_shard_size="300KB" if safe == "shards" else "1GB")
    files = sorted(path.name for path in tmp_path.glob("*.safetensors*"))
    assert ("model.safetensors.index.json" in files) == (safe == "shards")
    source = tmp_path / "model.safetensors" if safe == "file" else tmp_path
    name, state = load_checkpoint(source)
    assert name == "tiny"
    expected = to_meta(hf.state_dict())
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert load_into(build(TINY), state) == ()


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_keys_and_shapes_are_the_originals(name):
    with torch.device("meta"):
        ours = build(CONFIGS[name]).state_dict()
        theirs = oracle.load().sam_model_registry[name]().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", ["vit_b", "vit_h"])
def test_keys_and_shapes_are_transformers(name):
    with torch.device("meta"):
        ours = to_transformers(build(CONFIGS[name]).state_dict())
        theirs = transformers_sam(replace(CONFIGS[name])).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
