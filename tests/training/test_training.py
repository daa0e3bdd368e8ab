"""The training code: its parts against plain arithmetic, and a run that stops and goes on."""

from __future__ import annotations

import copy
import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn

from samfast.errors import CheckpointError, DatasetError
from samfast.model.config import CONFIGS
from samfast.types import PADDING_LABEL
from tests.model.tiny import TINY, random_sam
from training import (
    augment,
    calibrate,
    clicks,
    losses,
    mix,
    muon,
    pack,
    state,
    store,
    table,
    train,
)
from training.network import Trainee


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six photos of a bright disc on noise, each with the disc and a square that overlaps it."""
    from pycocotools import mask as coco

    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    images: list[dict] = []
    annotations: list[dict] = []
    for i in range(6):
        height, width = 60 + 4 * i, 80
        y, x = np.mgrid[:height, :width]
        disc = (y - 30) ** 2 + (x - 30) ** 2 < 15**2
        square = (abs(y - 40) < 12) & (abs(x - 40) < 12)
        photo = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        photo[disc] += 120
        Image.fromarray(photo).save(root / "images" / f"{i}.png")
        images.append(
            {
                "id": i,
                "file_name": f"{i}.png",
                "width": width,
                "height": height,
                "source": "ab"[i % 2],
            }
        )
        for mask in (disc, square):
            rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": i,
                    "segmentation": rle,
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
            )
    (root / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": annotations})
    )
    return root


def test_overlapping_masks_lie_on_different_planes(folder):
    data = store.load([folder], canvas=96)
    assert data.labels.shape == (6, 2, 96, 96)
    assert data.sizes[0].tolist() == [60, 80]
    square = (data.labels[0] > 0).sum((1, 2)).sort().values.tolist()
    assert square[1] == 23 * 23 or square[0] == 23 * 23
    assert not data.pixels[0, :, 60:].any()


def test_a_folder_without_annotations_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"annotations\.json"):
        store.load([tmp_path])


def test_whole_photos_are_shown_as_at_inference(folder):
    data = store.load([folder], canvas=96)
    how = augment.Augmentation(whole=1.0, paste=0.0, colour=0.0, mosaic=0.0)
    generator = torch.Generator().manual_seed(0)
    got = augment.batch(data, torch.tensor([0] * 8), 128, 128, how, torch.device("cpu"), generator)
    assert got.pixels.shape == (8, 3, 128, 128)
    assert not got.pixels[:, :, 97:].any(), "rows below the photo are zero"
    assert got.pixels[:, :, :95].any()
    truth = (got.labels > 0).any(1).float()
    means = truth.flatten(1).mean(1)
    assert torch.allclose(means, means[:1].expand_as(means), rtol=0.05), "flipping keeps the area"


def test_masks_move_with_their_photo(folder):
    """Under every augmentation the disc stays the bright part of the photo."""
    data = store.load([folder], canvas=96)
    how = replace(augment.FIRST_EDITION, whole=0.0, paste=0.0, colour=0.0, turn=0.5)
    generator = torch.Generator().manual_seed(1)
    got = augment.batch(
        data, torch.arange(6).repeat(4), 128, 128, how, torch.device("cpu"), generator
    )
    bright = torch.nn.functional.avg_pool2d(got.pixels.mean(1, keepdim=True), 4)[:, 0] > 0.3
    disc = torch.zeros_like(bright)
    for i in range(len(bright)):  # the disc is the id whose pixels are brightest
        ids = [(p, n) for p in range(2) for n in got.labels[i, p].unique().tolist() if n]
        if ids:
            scores = [bright[i][got.labels[i, p] == n].float().mean() for p, n in ids]
            p, n = ids[int(torch.stack(scores).argmax())]
            disc[i] = got.labels[i, p] == n
    union = (bright | disc).sum()
    assert (bright & disc).sum() / union > 0.8


def test_copy_paste_brings_an_object_and_its_mask(folder):
    data = store.load([folder], canvas=96)
    generator = torch.Generator().manual_seed(2)
    how = augment.Augmentation(whole=1.0, paste=1.0, colour=0.0, mosaic=0.0)
    got = augment.batch(data, torch.arange(6), 128, 128, how, torch.device("cpu"), generator)
    assert (got.labels[:, 0] == store.MAX_IDS).flatten(1).any(1).all()


def test_objects_are_drawn_only_where_there_are_any():
    labels = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    labels[0, 0, :8] = 3
    labels[0, 0, 8, 0] = 4  # too small
    planes, ids, has = augment.draw(
        augment.object_weights(labels, 4), 5, torch.Generator().manual_seed(0)
    )
    assert has.tolist() == [True, False]
    assert ids[0].tolist() == [3] * 5
    assert planes[0].tolist() == [0] * 5


def test_clicks_fall_inside_and_boxes_around():
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, 4:9, 10:20] = True
    mask[1, 20, 3] = True
    generator = torch.Generator().manual_seed(0)
    for central in (0.0, 1.0):
        cell = (clicks.click(mask, central, generator) / augment.LOW_RES).long()
        assert all(mask[i, cell[i, 1], cell[i, 0]] for i in range(2))
    box = clicks.boxes(mask, 0.0, generator)
    expected = torch.tensor([[40.0, 16, 80, 36], [12, 80, 16, 84]])
    assert (box - expected).abs().max() <= 2


def test_a_correction_lies_in_the_error_and_is_labelled_by_the_truth():
    truth = torch.zeros(2, 16, 16, dtype=torch.bool)
    truth[:, 4:12, 4:12] = True
    logits = torch.where(truth, 1.0, -1.0)
    logits[0, 4:12, 4:8] = -1.0  # missed
    logits[1, 0:3, 0:16] = 1.0  # too much
    point, label = clicks.correction(logits, truth, torch.Generator().manual_seed(0))
    assert label.tolist() == [1, 0]
    cell = (point / augment.LOW_RES).long()
    assert 4 <= cell[0, 0] < 8
    assert cell[1, 1] < 3


def test_losses_by_hand():
    truth = torch.zeros(1, 4, 4)
    truth[:, :2] = 1
    perfect = (truth * 2 - 1)[:, None].expand(1, 4, 4, 4) * 30
    result = losses.losses(perfect, torch.ones(1, 4), truth, torch.ones(1))
    assert float(result.total) < 1e-3
    mixed = perfect.clone()
    mixed[:, 1:3] *= -1  # two of the three answers are wrong: only the best counts
    assert (
        float(losses.losses(mixed, torch.tensor([[1.0, 0, 0, 1]]), truth, torch.ones(1)).total)
        < 1e-3
    )
    focal = losses.focal(torch.zeros(1, 4, 4), truth)
    np.testing.assert_allclose(focal.item(), 0.5 * (0.25 + 0.75) * 0.25 * np.log(2), rtol=1e-5)
    dice = losses.dice(torch.zeros(1, 4, 4), truth)
    np.testing.assert_allclose(dice.item(), 1 - (2 * 4 + 1) / (8 + 8 + 1), rtol=1e-5)


def test_pixels_near_the_border_weigh_more():
    truth = torch.zeros(1, 32, 32)
    truth[:, :16] = 1
    near = losses.near_border(truth)
    assert near[0, 13:19].all()
    assert not near[0, :13].any()
    logits = torch.zeros(1, 4, 32, 32)
    plain = losses.focal(logits[:, 0], truth)
    weighted = losses.focal(logits[:, 0], truth, weight=1 + 2 * near)
    assert float(weighted) == pytest.approx(float(plain) * (1 + 2 * 6 / 32), rel=1e-5)


def test_holes_and_islands_are_rough_and_the_object_is_not():
    truth = torch.zeros(1, 64, 64)
    truth[:, :32] = 1
    near = losses.near_border(truth)
    masks = (truth * 2 - 1)[:, None].repeat(1, 2, 1, 1) * 30
    masks[0, 1, 8:10, 8:10] *= -1  # a hole of 2 x 2 pixels: 8 borders
    masks[0, 1, 50, 50] *= -1  # an island of one pixel: 4
    rough = losses.roughness(masks, truth, near)
    assert float(rough[0, 0]) == pytest.approx(0, abs=1e-6)
    assert float(rough[0, 1]) == pytest.approx(12 / (64 + 16), rel=1e-4)


def test_quarters_of_a_mosaic_keep_their_pixels_and_tell_objects_apart():
    count, side = 4, 32
    pixels = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 3, side, side) / 10
    labels = torch.full((count, 1, side // 4, side // 4), 3, dtype=torch.uint8)
    inside = torch.ones(count, 1, side, side, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    mixed, ids, _ = augment.mosaic(pixels, labels, inside, 1.0, generator)
    for photo in range(count):
        where = (ids[photo, 0].long() - 3) // augment.QUARTER_IDS
        assert sorted(where.unique().tolist()) == [0, 1, 2, 3]
        for quarter in range(4):
            came_from = (photo - quarter) % count
            shown = mixed[photo, 0, ::4, ::4][where == quarter]
            assert torch.allclose(shown, pixels[came_from, 0, 0, 0])
    same = augment.mosaic(pixels, labels, inside, 0.0, generator)
    assert torch.equal(same[0], pixels)
    assert torch.equal(same[1], labels)


def test_degraded_photos_stay_alike():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(4, 3, 8, 8, generator=generator), size=64, mode="bilinear"
    )
    got = augment.degrade(smooth, 1.0, generator)
    assert not torch.equal(got, smooth)
    assert (got - smooth).abs().mean() < 0.05
    assert torch.equal(augment.degrade(smooth, 0.0, generator), smooth)


def test_orthogonalized_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 16, 48, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonalize(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_moves_every_hidden_matrix_against_its_gradient():
    sam = random_sam()
    matrices = muon.hidden_matrices(sam)
    names = [name for name, _ in matrices]
    assert any(name.endswith("qkv.weight") for name in names)
    assert not any(name.endswith("layers.2.weight") for name in names)
    before = [p.detach().clone() for _, p in matrices]
    for _, p in matrices:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    muon.Muon(matrices, weight_decay=0.0).step(0.01)
    for old, (name, p) in zip(before, matrices, strict=True):
        assert ((p - old) * p.grad).sum() < 0, name


def test_held_out_photos_are_in_no_training(folder, monkeypatch):
    monkeypatch.setattr(store, "HELD_OUT", 2)
    counts = [len(store.load([folder], 96, held_out)) for held_out in (True, False, None)]
    assert counts[0] + counts[1] == counts[2] == 6
    assert counts[0] > 0
    assert counts[1] > 0


def test_folders_are_read_together_and_sources_can_be_drawn_more_often(folder):
    data = store.load([folder, folder], canvas=96)
    assert len(data) == 12
    weights = data.sampling_weights({"a": 3.0})
    of_a = torch.tensor([source == "a" for source in data.sources])
    assert float(weights[of_a].sum() / weights[~of_a].sum()) == pytest.approx(3.0)


def test_a_packed_folder_has_the_same_masks(folder, tmp_path):
    pack.pack(folder, tmp_path)
    first, second = store.load([folder], canvas=96), store.load([tmp_path], canvas=96)
    assert torch.equal(first.labels, second.labels)
    assert (first.pixels.float() - second.pixels.float()).abs().mean() < 12


def test_the_trainee_at_full_size_is_the_model():
    sam = random_sam()
    trainee = Trainee(sam, drop=0.5).eval()
    pixels = torch.randn(2, 3, TINY.image_size, TINY.image_size)
    corner = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        features = trainee.encode(pixels, corner)
        torch.testing.assert_close(features, sam.image_encoder(pixels), rtol=1e-4, atol=1e-4)
        coords = torch.tensor([[[30.0, 40], [0, 0]], [[0, 0], [0, 0]]])
        labels = torch.tensor([[1, PADDING_LABEL], [PADDING_LABEL, PADDING_LABEL]])
        box = torch.tensor([[0.0, 0, 1, 1], [10, 20, 60, 70]])
        low, iou = trainee.decode(
            features, corner, coords, labels, box, torch.tensor([False, True]), None
        )
        for i, given in enumerate(
            (
                {"points": (coords[:1, :1], labels[:1, :1]), "boxes": None},
                {"points": None, "boxes": box[1:]},
            )
        ):
            sparse, dense = sam.prompt_encoder(**given, masks=None)
            want = sam.mask_decoder.predict_masks(
                features[i : i + 1], sam.prompt_encoder.get_dense_pe(), sparse, dense
            )
            torch.testing.assert_close(low[i : i + 1], want[0], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(iou[i : i + 1], want[1], rtol=1e-3, atol=1e-3)


STAGES = (train.Stage(64, 2, 2, 0.5, False), train.Stage(128, 2, 2, 0.5, True))


@pytest.fixture
def tiny_training(folder, monkeypatch) -> list[str]:
    """The command line of a training of a tiny model on the CPU."""
    monkeypatch.setitem(CONFIGS, "tiny", TINY)
    monkeypatch.setattr(train, "STAGES", STAGES)
    options = ["--data", str(folder), "--val", str(folder), "--model", "tiny", "--canvas", "96"]
    return [*options, "--no-compile", "--device", "cpu", "--score-min-area", "200"]


def test_a_training_stops_goes_on_and_exports_a_checkpoint(tiny_training, tmp_path):
    out = tmp_path / "run"
    options = [*tiny_training, "--out", str(out)]
    full = train.Training(train.arguments([*options, "--steps", "5"]))
    before = {k: v.clone() for k, v in full.sam.state_dict().items()}
    full.run()
    assert full.progress.step == 5
    assert full.stage() == 1
    weights = load_file(out / "tiny.safetensors")
    assert set(weights) == set(before)
    assert {v.dtype for v in weights.values()} == {torch.float16}
    assert any(not torch.equal(weights[k].float(), before[k].half().float()) for k in weights)
    assert (out / "stage_0.safetensors").is_file()
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert 0 <= rows[-1]["score"]["box_miou"] <= 1
    assert rows[-1]["side"] == 128

    resumed = train.Training(train.arguments([*options, "--steps", "7"]))
    assert resumed.progress.step == 5
    resumed.look_at_clock()
    resumed.run()
    assert resumed.progress.step == 7


def test_a_training_by_the_clock_ends_in_time(tiny_training, tmp_path):
    options = [*tiny_training, "--out", str(tmp_path), "--minutes", "0.02"]
    training = train.Training(train.arguments(options))
    training.run()
    assert training.progress.step % train.CLOCK_EVERY == 0
    assert training.progress.fraction == 1


def train_as(rank: int, options: list[str], port: int, out: Path) -> None:
    """One of two processes of a training; keeps its weights."""
    CONFIGS["tiny"] = TINY
    train.STAGES = STAGES
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    training = train.Training(train.arguments(options))
    training.run()
    torch.save(training.sam.state_dict(), out / f"{rank}.pt")


def test_two_processes_train_the_same_weights(tiny_training, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [*tiny_training, "--out", str(tmp_path / "run"), "--steps", "4"]
    spawn(train_as, (options, port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert state.restore(
        tmp_path / "run" / "state.safetensors", random_sam(), state.Average(random_sam(), 0.9)
    ) == replace(state.Progress(4, 16, fraction=1.0), seconds=pytest.approx(0, abs=600))


def test_a_training_starts_from_a_checkpoint_as_it_was_before_calibration(tiny_training, tmp_path):
    sam = random_sam()
    state.export(sam.state_dict(), tmp_path / "c.safetensors", 8.0, 0.5, 0.25)
    options = [*tiny_training, "--out", str(tmp_path), "--init", str(tmp_path / "c.safetensors")]
    training = train.Training(train.arguments(options))
    for name, value in training.sam.state_dict().items():
        torch.testing.assert_close(value, sam.state_dict()[name], rtol=2e-3, atol=2e-3)


def test_a_damaged_state_is_named(tmp_path):
    file = tmp_path / "state.safetensors"
    file.write_bytes(b"nothing")
    sam = random_sam()
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        state.restore(file, sam, state.Average(sam, 0.9))


def test_the_average_follows_the_model():
    sam = random_sam()
    average = state.Average(sam, 0.5)
    with torch.no_grad():
        for p in sam.parameters():
            p.add_(1.0)
    for _ in range(60):
        average.update(sam)
    for name, p in sam.named_parameters():
        torch.testing.assert_close(average.values[name], p.detach(), rtol=1e-3, atol=1e-3)
    assert set(average.state_dict()) == set(sam.state_dict())


def test_scaled_logits_give_the_same_masks_and_take_the_same_mask_prompts():
    sam = random_sam()
    scaled = copy.deepcopy(sam)
    scaled.load_state_dict(state.scale_logits(sam.state_dict(), 4.0))
    features = torch.randn(1, TINY.out_chans, 8, 8)
    box = torch.tensor([[3.0, 4, 60, 70]])

    def answer(model, logits):
        with torch.no_grad():
            sparse, dense = model.prompt_encoder(points=None, boxes=box, masks=logits)
            return model.mask_decoder(
                features, model.prompt_encoder.get_dense_pe(), sparse, dense, False
            )

    first, iou = answer(sam, None)
    four, same = answer(scaled, None)
    assert torch.equal(four, first * 4)
    assert torch.equal(same, iou)
    torch.testing.assert_close(answer(scaled, four)[0], answer(sam, first)[0] * 4)


def answers_of(predicted: torch.Tensor, generator: torch.Generator) -> calibrate.Sample:
    """Answers whose IoU is at least a half with the probability that was predicted."""
    right = torch.rand(predicted.shape, generator=generator) < predicted
    stable = torch.linspace(0.7, 1.0, len(calibrate.SCALES)).expand(*predicted.shape, -1)
    return calibrate.Sample(predicted, right.float(), stable)


def test_calibrated_ratings_keep_nine_right_in_ten():
    generator = torch.Generator().manual_seed(0)
    answers = answers_of(torch.rand(20_000, 1, generator=generator), generator)
    factors = calibrate.fit(answers)
    rated = answers.predicted * factors["iou_scale"] + factors["iou_shift"]
    kept = answers.actual[rated >= 0.88]
    assert float(kept.mean()) == pytest.approx(0.9, abs=0.01)
    assert float(rated.quantile(0.99)) == pytest.approx(0.99, abs=0.01)
    stable = answers.stability[0, 0, calibrate.SCALES.index(int(factors["logit_scale"]))]
    assert stable >= 0.95


def test_a_checkpoint_is_read_as_it_was_before_calibration(tmp_path):
    sam = random_sam()
    file = tmp_path / "weights.safetensors"
    state.export(sam.state_dict(), file, 8.0, 0.5, 0.25)
    assert not torch.allclose(
        load_file(file)["mask_decoder.iou_prediction_head.layers.2.bias"].float(),
        sam.mask_decoder.iou_prediction_head.layers[2].bias.detach(),
        atol=1e-2,
    )
    for name, value in state.read_checkpoint(file).items():
        torch.testing.assert_close(value, sam.state_dict()[name], rtol=2e-3, atol=2e-3)
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"no\.safetensors"):
        state.read_checkpoint(tmp_path / "no.safetensors")


def test_a_mean_of_two_checkpoints_forgets_how_either_was_calibrated(tmp_path):
    a, b = random_sam(TINY).state_dict(), random_sam(TINY).state_dict()
    b = {name: value + 0.5 for name, value in b.items()}
    state.export(a, tmp_path / "a.safetensors", 8.0, 0.5, 0.25)
    state.export(b, tmp_path / "b.safetensors", 2.0, 0.25, 0.5)
    files = [str(tmp_path / f"{name}.safetensors") for name in ("a", "b", "mean")]
    mix.main([*files, "--share", "0.25"])
    for name, value in state.read_checkpoint(tmp_path / "mean.safetensors").items():
        expected = 0.75 * a[name] + 0.25 * b[name]
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=2e-3)


def test_there_is_no_mean_of_different_models():
    a = random_sam(TINY).state_dict()
    with pytest.raises(CheckpointError, match="different models"):
        mix.mean(a, {name: value[..., :1] for name, value in a.items()}, 0.5)


def test_small_pieces_are_counted():
    mask = np.zeros((60, 60), bool)
    mask[5:55, 5:55] = True
    mask[10:12, 10:12] = False  # a hole
    mask[20:40, 20:40] = False  # a large one
    mask[1, 1] = True  # an island
    assert table.small_pieces(mask) == (1, 1)


def test_reliability_by_hand():
    predicted = np.array([0.95, 0.92, 0.9, 0.15])
    actual = np.array([0.9, 0.6, 0.3, 0.1])
    got = table.reliability(predicted, actual)
    low, high = got["bins"]
    assert (low["from"], low["masks"], low["share_50"]) == (0.1, 1, 0.0)
    assert (high["from"], high["masks"]) == (0.9, 3)
    assert high["share_50"] == pytest.approx(2 / 3)
    assert got["share_50_at_0.88"] == pytest.approx(2 / 3)
