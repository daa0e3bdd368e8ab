"""The model against the original: the same weights, the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samfast.attention import IMPLEMENTATIONS, auto
from samfast.model.config import CONFIGS, SamConfig
from samfast.model.sam import build
from tests.pairs import SMALL, original, pair, picture, randomise, relative_error, undecided


def pixels(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, h, w) float, as if resized already."""
    return torch.from_numpy(picture(height, width, seed)).permute(2, 0, 1).float()


@pytest.fixture(scope="module")
def sams():
    return pair()


@pytest.mark.parametrize("size", [(256, 256), (171, 256), (256, 86), (2, 256)])
def test_preprocessing(sams, size: tuple[int, int]) -> None:
    theirs, ours = sams
    assert torch.equal(ours.preprocess(pixels(*size)), theirs.preprocess(pixels(*size)))


@pytest.mark.parametrize(
    ("attention", "grad"),
    [(name, False) for name in (*IMPLEMENTATIONS, "auto")]
    + [(name, True) for name in ("reference", "sdpa", "folded", "auto")],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_embeddings(sams, attention: str, grad: bool, batch: int) -> None:
    theirs, ours = sams
    attend = auto.attend if attention == "auto" else IMPLEMENTATIONS[attention]
    for block in ours.image_encoder.blocks:
        block.attn.attend = attend
    images = torch.stack([ours.preprocess(pixels(256, 171, seed)) for seed in range(batch)])
    with torch.set_grad_enabled(grad):
        embedding, expected = ours.image_encoder(images), theirs.image_encoder(images)
    assert embedding.shape == (batch, 64, 16, 16)
    assert relative_error(embedding.detach(), expected.detach()) <= 1e-5


@pytest.mark.parametrize("window", [0, 4, 5, 16, 20])
def test_any_window(window: int) -> None:
    config = SamConfig(
        "other", 32, 2, 2, (1,), image_size=160, window_size=window, out_chans=32, decoder_heads=4
    )
    theirs, ours = pair(config)
    image = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative_error(ours.image_encoder(image), theirs.image_encoder(image)) <= 1e-5


def test_relative_positions_of_another_length_are_interpolated() -> None:
    theirs, ours = pair()
    for sam in (theirs, ours):
        for block in sam.image_encoder.blocks:
            for name in ("rel_pos_h", "rel_pos_w"):
                table = getattr(block.attn, name)
                setattr(block.attn, name, torch.nn.Parameter(table.detach()[::2].clone()))
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative_error(ours.image_encoder(image), theirs.image_encoder(image)) <= 1e-5


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_whole_model(sams, multimask: bool, points: bool, boxes: bool, masks: bool) -> None:
    theirs, ours = sams
    generator = torch.Generator().manual_seed(0)
    records = []
    for size, inside, count in [((100, 150), (171, 256), 3), ((400, 130), (256, 83), 1)]:
        record: dict[str, Any] = {"image": pixels(*inside), "original_size": size}
        if points:
            record["point_coords"] = torch.rand(count, 4, 2, generator=generator) * 256
            record["point_labels"] = torch.randint(-1, 2, (count, 4), generator=generator)
        if boxes:
            corners = torch.rand(count, 2, 2, generator=generator) * 256
            record["boxes"] = corners.sort(dim=1).values.flatten(1)
        if masks:
            record["mask_inputs"] = 5 * torch.randn(count, 1, 64, 64, generator=generator)
        records.append(record)
    answers, expected = ours(records, multimask), theirs(records, multimask)
    for record, answer, theirs_one in zip(records, answers, expected, strict=True):
        assert list(answer) == list(theirs_one)
        assert [v.shape for v in answer.values()] == [v.shape for v in theirs_one.values()]
        assert relative_error(answer["iou_predictions"], theirs_one["iou_predictions"]) <= 1e-4
        assert relative_error(answer["low_res_logits"], theirs_one["low_res_logits"]) <= 1e-4
        inside = record["image"].shape[-2:]
        logits = theirs.postprocess_masks(
            theirs_one["low_res_logits"], inside, record["original_size"]
        )
        open_pixels = torch.from_numpy(undecided(logits))
        assert torch.equal(answer["masks"] | open_pixels, theirs_one["masks"] | open_pixels)
        assert open_pixels.float().mean() < 0.001


def test_gradients(sams) -> None:
    image = pixels(256, 256)[None] / 100
    gradients = []
    for sam in sams:
        sam.zero_grad()
        embedding = sam.image_encoder(image)
        sparse, dense = sam.prompt_encoder(
            points=None, boxes=torch.tensor([[10.0, 20, 200, 180]]), masks=None
        )
        masks, iou = sam.mask_decoder(
            embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True
        )
        (masks.square().mean() + iou.sum()).backward()
        named = sam.named_parameters()
        gradients.append({name: p.grad for name, p in named if p.grad is not None})
    theirs, ours = gradients
    assert set(ours) == set(theirs)
    assert any("rel_pos" in name for name in ours)
    largest = max(float(grad.norm()) for grad in theirs.values())
    for name, grad in theirs.items():
        assert float((ours[name] - grad).norm()) <= 1e-4 * float(grad.norm()) + 1e-7 * largest, name


def test_new_models_are_the_originals_draw_for_draw() -> None:
    torch.manual_seed(5)
    theirs = original(SMALL).state_dict()
    torch.manual_seed(5)
    ours = build(SMALL).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def full_size(name: str) -> None:
    theirs = original(CONFIGS[name])
    randomise(theirs, scale=0.01)
    ours = build(CONFIGS[name])
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    for block in ours.image_encoder.blocks:
        block.attn.attend = auto.attend
    image = ours.preprocess(pixels(683, 1024))[None]
    boxes = torch.tensor([[100.0, 100, 800, 600], [20, 30, 90, 80]])
    points = (torch.tensor([[[300.0, 200]], [[50, 60]]]), torch.tensor([[1], [0]]))
    with torch.no_grad():
        expected, embedding = theirs.image_encoder(image), ours.image_encoder(image)
        assert relative_error(embedding, expected) <= 1e-5
        answers = []
        for sam, features in ((theirs, expected), (ours, embedding)):
            prompts = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
            pe = sam.prompt_encoder.get_dense_pe()
            answers.append(sam.mask_decoder(features, pe, *prompts, True))
    for their, our in zip(*answers, strict=True):
        assert relative_error(our, their) <= 1e-4


def test_vit_xs_at_full_size() -> None:
    full_size("vit_xs")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_full_size(name: str) -> None:
    full_size(name)
