from __future__ import annotations

import threading
import time
from itertools import islice
from statistics import fmean

import numpy as np
import pytest
import torch

from samfast.bench import accuracy
from samfast.bench.accuracy import evaluate, intersection_over_union
from samfast.bench.coco_dataset import open_dataset
from samfast.bench.mask_points import edt
from samfast.bench.samples import one_click_each
from samfast.errors import DatasetError, EmbeddingsError, InputError
from samfast.images import load_image
from samfast.prompted_masks.answer_stream import AnsweredImage
from samfast.recipes import RECIPES
from samfast.types import Masks, Prompts
from tests.bench import coco
from tests.model.tiny import fast, random_sam

SIZE = (20, 30)
KEYS = {
    "model",
    "recipe",
    "images",
    "masks",
    "point",
    "box",
    "by_source",
    "by_category",
    "images_per_second",
    "peak_memory_bytes",
    "environment",
}


class Fake:
    """Answers a box with its right half, a point with: nothing, the 4 x 4 square right below it,
    everything."""

    name, recipe_name, batch_size = "fake", "none", 1
    device = torch.device("cpu")

    def __init__(self, best=1, fail_on=None):
        self.best, self.fail_on = best, fail_on
        self.calls = []

    def answer_each(self, items, load, *, batch_size):
        items = iter(items)
        while group := list(islice(items, batch_size)):
            names = [item.image.name for item in group]
            self.calls.append(names)
            for item, name in zip(group, names, strict=True):
                image = load(item.image, 0)
                if self.fail_on is not None and name.endswith(self.fail_on):
                    error = EmbeddingsError(f"image 7: no luck with {self.fail_on}")
                    yield AnsweredImage(image, [], error)
                else:
                    yield AnsweredImage(
                        image,
                        [self._answer(image.size, q.prompts, q.multimask) for q in item.questions],
                    )

    def _answer(self, size, prompts, multimask):
        if not multimask:
            assert prompts.points is None
            masks = torch.zeros(len(prompts.boxes), 1, *size, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, prompts.boxes.astype(int), strict=True):
                mask[0, y0:y1, (x0 + x1) // 2 : x1] = True
            return Masks(masks, torch.zeros(len(masks), 1), torch.zeros(len(masks), 1, 4, 4))
        assert prompts.boxes is None
        assert prompts.labels.tolist() == [[1]] * len(prompts.points)
        masks = torch.zeros(len(prompts.points), 3, *size, dtype=torch.bool)
        for mask, ((x, y),) in zip(masks, prompts.points.astype(int), strict=True):
            mask[1, y : y + 4, x : x + 4] = True
            mask[2] = True
        iou = torch.zeros(len(masks), 3)
        iou[:, self.best] = 1
        return Masks(masks, iou, torch.zeros(len(masks), 3, 4, 4))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Three images, two sources: an 8 x 8 square; a 2 x 10 bar and an L; a 4 x 4 square without a
    source."""
    ell = coco.rectangle(SIZE, 2, 2, 10, 2) | coco.rectangle(SIZE, 10, 2, 2, 10)
    return coco.write(
        tmp_path / "set",
        [{"height": 20, "width": 30, "source": s} for s in ("a", "b")]
        + [{"height": 20, "width": 30}],
        [
            coco.annotation(1, 1, coco.rectangle(SIZE, 4, 6, 8, 8)),
            coco.annotation(2, 2, coco.rectangle(SIZE, 16, 10, 2, 10)),
            coco.annotation(3, 2, ell),
            coco.annotation(4, 3, coco.rectangle(SIZE, 0, 0, 4, 4)),
        ],
    )


def test_scores_are_exact(folder):
    result = evaluate(Fake(), open_dataset(folder))
    assert set(result) == KEYS
    assert (result["model"], result["recipe"], result["images"], result["masks"]) == (
        "fake",
        "none",
        3,
        4,
    )
    # edt points (x, y): square (9, 7), bar (10, 16), L (2, 2), small square (1, 1); answers are 4 x
    # 4 from there. The square: 16 of its 64. The bar: 4 x 2 of 20, and 8 outside. The L (36 of 100
    # px): 8 of 36, and 8 outside; the small square: 3 x 3 of 16 + 7.
    points = [16 / 64, 8 / 28, 8 / 44, 9 / 23]
    everything = [64 / 600, 20 / 600, 36 / 600, 16 / 600]
    halves = [0.5, 0.5, (10 + 0) / (36 + 50 - 10), 0.5]
    filled = [1, 1, 36 / 100, 1]
    assert result["point"]["miou"] == pytest.approx(np.mean(points))
    assert result["point"]["miou_oracle"] == pytest.approx(np.mean(np.maximum(points, everything)))
    assert (
        result["point"]["filled_box"]
        == result["box"]["filled_box"]
        == pytest.approx(np.mean(filled))
    )
    assert result["box"]["miou"] == pytest.approx(np.mean(halves))
    assert set(result["by_source"]) == {"a", "b"}
    b = result["by_source"]["b"]
    assert (b["images"], b["masks"]) == (1, 2)
    assert b["point"]["miou"] == pytest.approx(np.mean(points[1:3]))
    assert b["box"]["miou"] == pytest.approx(np.mean(halves[1:3]))
    assert b["box"]["filled_box"] == pytest.approx(np.mean(filled[1:3]))
    assert result["by_source"]["a"]["point"]["miou_oracle"] == pytest.approx(points[0])
    assert result["images_per_second"] > 0
    assert result["peak_memory_bytes"] is None or result["peak_memory_bytes"] >= 0
    assert result["environment"]["torch"] == torch.__version__


def test_miou_follows_the_predicted_iou_and_the_oracle_does_not(folder):
    sure, unsure = (
        evaluate(Fake(best=best), open_dataset(folder), prompts="point") for best in (1, 0)
    )
    assert unsure["point"]["miou"] == 0
    assert unsure["point"]["miou_oracle"] == sure["point"]["miou_oracle"]
    assert evaluate(Fake(best=2), open_dataset(folder))["point"]["miou"] == pytest.approx(
        136 / 4 / 600
    )


def test_only_what_is_asked(folder):
    data = open_dataset(folder)
    assert evaluate(Fake(), data, prompts="point")["box"] is None
    box = evaluate(Fake(), data, prompts="box")
    assert box["point"] is None
    assert box["by_source"]["a"]["point"] is None
    assert box["box"] == evaluate(Fake(), data)["box"]


def test_the_point_rule_changes_the_point(folder):
    data = open_dataset(folder)
    # The centre of mass of the square is (9.5, 7.5), rounded to even: (10, 8); of the small one
    # (1.5, 1.5): (2, 2).
    seed = evaluate(Fake(), data, prompts="point", point_rule="seed")
    assert seed["by_source"]["a"]["point"]["miou"] == pytest.approx(16 / 64)
    assert seed["point"]["miou"] != evaluate(Fake(), data, prompts="point")["point"]["miou"]


def test_min_area_and_limit(folder):
    data = open_dataset(folder)
    result = evaluate(Fake(), data, min_area=21)
    assert (result["images"], result["masks"]) == (2, 2)  # the third image has no mask left
    result = evaluate(Fake(), data, min_area=20)
    assert (result["images"], result["masks"]) == (2, 3)
    result = evaluate(Fake(), data, limit=1)
    assert (result["images"], result["masks"], list(result["by_source"])) == (1, 1, ["a"])
    with pytest.raises(DatasetError, match="1000 pixels"):
        evaluate(Fake(), data, min_area=1000)


def test_without_sources(folder):
    coco.edit(folder, lambda content: [each.pop("source", None) for each in content["images"]])
    assert evaluate(Fake(), open_dataset(folder))["by_source"] == {}


def test_by_category(folder):
    def change(content):
        content["categories"] = [
            {"id": 1, "name": "square"},
            {"id": 2, "name": "bar"},
            {"id": 3, "name": "bar"},
        ]
        for each, category in zip(content["annotations"], (1, 2, 3, 9), strict=True):
            each["category_id"] = category

    result = evaluate(Fake(), open_dataset(coco.edit(folder, change)))
    by = result["by_category"]
    assert list(by) == ["9", "bar", "square"]  # 9 has no name; two categories share one
    assert [(each["images"], each["masks"]) for each in by.values()] == [(1, 1), (1, 2), (1, 1)]
    assert by["bar"] == result["by_source"]["b"]
    assert by["square"] == result["by_source"]["a"]
    assert by["9"]["point"]["miou"] == pytest.approx(9 / 23)
    # One image whose two masks are of two categories counts in each.
    coco.edit(folder, lambda content: content["annotations"][2].update(category_id=1))
    by = evaluate(Fake(), open_dataset(folder))["by_category"]
    assert [(each["images"], each["masks"]) for each in by.values()] == [(1, 1), (1, 1), (2, 2)]
    assert by["square"]["point"]["miou"] == pytest.approx((16 / 64 + 8 / 44) / 2)
    coco.edit(folder, lambda content: [each.pop("category_id") for each in content["annotations"]])
    assert evaluate(Fake(), open_dataset(folder))["by_category"] == {}


def test_answers_are_handed_on_image_by_image(folder):
    seen: list[tuple] = []

    def look(place, answers):
        seen.append((place, {kind: tuple(each.masks.shape) for kind, each in answers.items()}))

    coco.edit(
        folder, lambda content: content["annotations"].pop(0)
    )  # the first image has no mask left
    evaluate(Fake(), open_dataset(folder), batch_size=2, on_answers=look)
    assert seen == [
        (1, {"point": (2, 3, *SIZE), "box": (2, 1, *SIZE)}),
        (2, {"point": (1, 3, *SIZE), "box": (1, 1, *SIZE)}),
    ]


def test_batches_give_the_same_scores(folder):
    single, batched = Fake(), Fake()
    data = open_dataset(folder)
    done: list[int] = []
    one = evaluate(single, data, batch_size=1)
    two = evaluate(batched, data, batch_size=2, progress=done.append)
    assert [len(call) for call in single.calls] == [1, 1, 1]
    assert [len(call) for call in batched.calls] == [2, 1]
    assert done == [1, 1, 1]
    for key in ("images", "masks", "point", "box", "by_source"):
        assert one[key] == two[key]


def damage(folder, how):
    picture = folder / "images" / "1.png"
    if how == "not an image":
        picture.write_text("hello")
    elif how == "another size":
        picture.write_bytes(
            (
                coco.write(folder / "other", [{"height": 21, "width": 30}], []) / "images/0.png"
            ).read_bytes()
        )
    elif how == "damaged mask":
        bad = {"size": list(SIZE), "counts": "0"}
        coco.edit(folder, lambda content: content["annotations"][1].update(segmentation=bad))


@pytest.mark.parametrize("how", ["not an image", "another size", "damaged mask", "the model fails"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_one_bad_image_is_reported_and_the_rest_are_scored(folder, how, batch_size):
    good = evaluate(Fake(), open_dataset(folder), prompts="box")
    damage(folder, how)
    lines: list[str] = []
    done: list[int] = []
    result = evaluate(
        Fake(fail_on="1.png" if how == "the model fails" else None),
        open_dataset(folder),
        prompts="box",
        batch_size=batch_size,
        on_error=lines.append,
        progress=done.append,
    )
    assert len(lines) == 1 and "image 7" not in lines[0]
    assert "1.png" in lines[0] or "annotations[1]" in lines[0]
    assert "\n" not in lines[0]
    assert (result["images"], result["masks"]) == (2, 2)
    assert result["by_source"] == {"a": good["by_source"]["a"]}
    assert sum(done) == 3


def test_without_on_error_the_first_bad_image_raises(folder):
    damage(folder, "another size")
    with pytest.raises(DatasetError, match=r"1\.png: the image is 21 x 30 .* for 20 x 30"):
        evaluate(Fake(), open_dataset(folder))


def test_nothing_left(folder):
    (folder / "images" / "1.png").write_text("hello")
    data = open_dataset(folder)
    with pytest.raises(DatasetError, match="1 images failed"):
        evaluate(Fake(), type(data)(data.images[1:2], data.name), on_error=lambda line: None)


@pytest.mark.parametrize(
    "options", [{"prompts": "mask"}, {"point_rule": "x"}, {"limit": 0}, {"batch_size": 0}], ids=repr
)
def test_unknown_options(folder, options):
    with pytest.raises(InputError, match=next(iter(options))):
        evaluate(Fake(), open_dataset(folder), **options)


def test_intersection_over_union():
    first, second = (
        torch.zeros(2, 1, 4, 4, dtype=torch.bool),
        torch.zeros(2, 4, 4, dtype=torch.bool),
    )
    assert intersection_over_union(first, second).tolist() == [[1.0], [1.0]]  # both empty
    first[0, 0, :2], second[0, 1:3] = True, True
    first[1, 0, 0, 0] = True
    assert intersection_over_union(first, second).tolist() == [[4 / 12], [0.0]]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("recipe", ["fp32", "fp32_sdpa", "bf16_sdpa"])
def test_scores_are_those_of_embed_and_predict_to_the_bit(folder, recipe, batch_size):
    sam = fast(random_sam(), RECIPES[recipe], batch_size=batch_size)
    data = open_dataset(folder)
    result = evaluate(sam, data, batch_size=batch_size)
    points, oracle, boxes = list[float](), list[float](), list[float]()
    for start in range(0, len(data), batch_size):
        images = data.images[start : start + batch_size]
        embeddings = sam.embed([load_image(image.path) for image in images])
        truths = [np.stack([each.mask() for each in image.annotations]) for image in images]
        clicked = [one_click_each(np.array([edt(mask) for mask in truth])) for truth in truths]
        boxed = []
        for image in images:
            corners = np.array([each.box for each in image.annotations])
            corners[:, 2:] += corners[:, :2]
            boxed.append(Prompts(boxes=corners))
        for truth, masks in zip(truths, sam.predict(embeddings, clicked), strict=True):
            iou = [
                [exact_iou(m, t) for m in each] for each, t in zip(masks.masks, truth, strict=True)
            ]
            best = masks.iou.float().argmax(dim=1).tolist()
            points += [row[column] for row, column in zip(iou, best, strict=True)]
            oracle += map(max, iou)
        for truth, masks in zip(
            truths, sam.predict(embeddings, boxed, multimask=False), strict=True
        ):
            boxes += [exact_iou(each[0], t) for each, t in zip(masks.masks, truth, strict=True)]
    assert result["point"]["miou"] == fmean(points)
    assert result["point"]["miou_oracle"] == fmean(oracle)
    assert result["box"]["miou"] == fmean(boxes)
    assert 0 < fmean(points) < fmean(oracle) < 1  # random masks, not empty ones


def exact_iou(mask, truth):
    mask = mask.numpy()
    either = int((mask | truth).sum())
    return int((mask & truth).sum()) / either if either else 1.0


def test_the_next_image_is_answered_while_one_is_scored(folder, monkeypatch):
    """Scoring waits here until the model has been asked about all images."""
    fake, asked, waited = Fake(), threading.Event(), []

    def wait(answers, truth):
        waited.append(asked.wait(10))
        return intersection_over_union(answers, truth)

    answer_each = fake.answer_each

    def answer_all(items, load, *, batch_size):
        yield from answer_each(items, load, batch_size=batch_size)
        asked.set()

    monkeypatch.setattr(accuracy, "intersection_over_union", wait)
    monkeypatch.setattr(fake, "answer_each", answer_all)
    result = evaluate(fake, open_dataset(folder))
    assert result["images"] == 3 and waited and all(waited)


def test_an_error_ends_the_threads(folder):
    damage(folder, "another size")
    before = set(threading.enumerate())
    for _ in range(3):
        with pytest.raises(DatasetError):
            evaluate(fast(random_sam(), RECIPES["fp32_sdpa"]), open_dataset(folder))
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_intersection_over_union_is_counted():
    generator = torch.Generator().manual_seed(0)
    answers = torch.rand(3, 2, 9, 7, generator=generator) > 0.4
    truth = torch.rand(3, 9, 7, generator=generator) > 0.6
    expected = [
        [exact_iou(m, t.numpy()) for m in each] for each, t in zip(answers, truth, strict=True)
    ]
    assert intersection_over_union(answers, truth).tolist() == expected


def test_the_packaged_model_on_one_small_image(tmp_path):
    """The engine itself fits: the same call, a real model, answers of the right shape and a box
    that is found."""
    import samfast

    mask = coco.rectangle((48, 64), 12, 16, 24, 32)
    root = coco.write(tmp_path, [{"height": 48, "width": 64}], [coco.annotation(1, 1, mask)])
    pixels = np.full((48, 64, 3), 200, dtype=np.uint8)
    pixels[mask] = (20, 40, 120)
    from PIL import Image

    Image.fromarray(pixels).save(root / "images" / "0.png")
    result = evaluate(samfast.load("vit_xs", device="cpu"), open_dataset(root))
    assert result["box"]["miou"] > 0.8
    assert result["point"]["miou_oracle"] >= result["point"]["miou"]
