"""Agreement with fp32: what is asked, what is counted, and what is worth nothing as evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from samfast.bench import agreement
from samfast.bench.agreement import KINDS, LOST, NEGLIGIBLE, SIDE, Answers, Questions
from samfast.engine import SamFast
from samfast.errors import DatasetError, UnsupportedRecipeError
from samfast.images import LoadedImage
from samfast.linear.encoder_layers import LAYERS
from samfast.recipes import Recipe
from samfast.types import Embeddings, Masks
from tests.model.tiny import fast, random_sam

CPU = torch.device("cpu")
SIZE = (40, 60)
TILE = 20


class Tiles:
    """A model that sees tiles of TILE pixels: a click or a box gets the tile of its centre.

    Of a click's three masks the middle one is the tile; the others lack rows of it. The photo's red
    at the centre says what to do with it: 0 is answered with nothing.
    """

    device = CPU
    batch_size = 1

    def __init__(self, cut=0, prefer=1, shift=0):
        self.cut, self.prefer, self.shift = cut, prefer, shift
        self.seen: list[np.ndarray] = []

    def embed(self, images):
        (image,) = images
        self.seen.append(image.pixels)
        self.pixels = image.pixels
        return Embeddings(torch.zeros(1, 1), (image.size,), (image.size,), "tiles")

    def predict(self, embeddings, prompts, *, multimask=True):
        ((height, width),) = embeddings.original_sizes
        (prompt,) = prompts
        centres = (
            prompt.points[:, 0] if multimask else (prompt.boxes[:, :2] + prompt.boxes[:, 2:]) / 2
        )
        masks = torch.zeros(len(centres), 3 if multimask else 1, height, width, dtype=torch.bool)
        for counts, (x, y) in zip(masks, centres, strict=True):
            if self.pixels[int(y), int(x), 0] == 0:
                continue
            left, top = int(x) // TILE * TILE, int(y) // TILE * TILE
            for i, mask in enumerate(counts):
                less = self.cut + 4 * abs(i - 1) if multimask else self.cut
                mask[top + less + self.shift : top + TILE + self.shift, left : left + TILE] = True
        iou = torch.full(masks.shape[:2], 0.5)
        iou[:, self.prefer if multimask else 0] = 0.9
        return [Masks(masks, iou, torch.zeros(*masks.shape[:2], 4, 4))]


def photo(dark=()):
    """SIZE pixels, 2 x 3 tiles of which some are dark, told apart by their brightness."""
    pixels = np.full((*SIZE, 3), 200, dtype=np.uint8)
    for row, column in dark:
        pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = 0
    return LoadedImage(pixels, "photo")


def test_labels_come_from_the_mirrored_photo_and_fit_it_mirrored_back():
    model = Tiles()
    image = photo(dark=[(0, 0)])
    asked = agreement.questions_of(model, image)
    mirrored, straight = model.seen
    assert np.array_equal(mirrored, image.pixels[:, ::-1])
    assert np.array_equal(straight, image.pixels)
    # Five of six tiles are bright, the dark one's clicks are negligible; each is one object,
    # however often hit.
    assert len(asked) == 5
    tiles = {(int(y) // TILE, int(x) // TILE) for x, y in asked.clicks}
    assert tiles == {(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)}
    assert all((box[2:] - box[:2] == TILE).all() for box in asked.boxes)
    assert all(asked.scores[kind].tolist() == [1.0] * 5 for kind in KINDS)


def test_the_same_model_agrees_and_loses_nothing():
    model = Tiles()
    asked = agreement.questions_of(model, photo())
    counts = agreement.compare(Tiles(), asked, photo())
    figures = agreement.summary([asked, asked], [counts, counts], [counts, counts])
    assert figures["loss_points"] == 0
    assert figures["agreement_miou"] == 1
    assert (figures["photos"], figures["objects"]) == (2, 12)


def test_what_is_cut_off_a_mask_is_agreement_and_points_lost():
    asked = agreement.questions_of(Tiles(), photo())
    counts = agreement.compare(Tiles(cut=5), asked, photo())  # 5 of 20 rows: IoU 0.75
    exact = agreement.compare(Tiles(), asked, photo())
    figures = agreement.summary([asked, asked], [counts, counts], [exact, exact])
    for kind in KINDS:
        assert figures[kind]["agreement"] == pytest.approx(0.75)
        assert figures[kind]["loss"] == pytest.approx(25)
        assert figures[kind]["disagreement"] == pytest.approx(25)
        assert figures[kind]["uncertainty"] == pytest.approx(
            0, abs=1e-9
        )  # the photos do not differ
    assert figures["loss_points"] == pytest.approx(25)
    assert figures["yardstick_miou"] == 1


def test_another_of_the_three_masks_is_no_loss_but_disagreement():
    asked = agreement.questions_of(Tiles(), photo())
    counts = agreement.compare(Tiles(prefer=0), asked, photo())  # of 16 rows: IoU 0.8
    exact = agreement.compare(Tiles(), asked, photo())
    figures = agreement.summary([asked] * 2, [counts] * 2, [exact] * 2)
    assert figures["click"]["loss"] == 0
    assert figures["click"]["disagreement"] == pytest.approx(20)
    assert figures["loss_points"] == pytest.approx(LOST * 20)


def test_disagreement_as_of_the_yardstick_is_free():
    asked = agreement.questions_of(Tiles(), photo())
    counts = agreement.compare(Tiles(prefer=0), asked, photo())
    figures = agreement.summary([asked] * 2, [counts] * 2, [counts] * 2)
    assert figures["loss_points"] == 0
    assert figures["yardstick_miou"] == figures["agreement_miou"] < 1


def test_more_photos_show_a_smaller_loss_and_one_shows_none():
    draws = np.random.default_rng(0).normal(0.1, 1.0, (64, 5))
    few, many = (agreement.interval(list(draws[:n])) for n in (8, 64))
    assert 0 < many[1] < few[1]
    assert many[0] == pytest.approx(draws.mean())
    assert agreement.interval(list(draws[:1]))[1] == 100
    assert agreement.interval([np.ones(3), np.ones(5)]) == (1.0, 0.0)


def test_the_interval_is_over_photos_not_objects():
    """Objects that repeat their photo tell nothing new; of photos of one object it is Student's
    interval."""
    from scipy import stats

    draws = np.random.default_rng(0).normal(size=9)
    once, often = (agreement.interval([np.full(n, each) for each in draws]) for n in (1, 50))
    assert once == pytest.approx(often)
    upper = stats.t.interval(0.90, 8, loc=draws.mean(), scale=draws.std(ddof=1) / 3)[1]
    assert sum(once) == pytest.approx(upper)


def test_large_photos_are_asked_a_few_objects_at_a_time(monkeypatch):
    whole = agreement.questions_of(Tiles(), photo())
    monkeypatch.setattr(agreement, "MAX_BYTES", 2 * 3 * SIZE[0] * SIZE[1])
    counts = []
    model = Tiles()
    predict = model.predict
    monkeypatch.setattr(
        model, "predict", lambda e, p, **rest: counts.append(rest) or predict(e, p, **rest)
    )
    parts = agreement.questions_of(model, photo())
    assert len(counts) == SIDE**2 // 2 + 3 + 3
    assert np.array_equal(parts.clicks, whole.clicks) and np.array_equal(parts.boxes, whole.boxes)
    assert isinstance(parts, Questions) and isinstance(
        agreement.compare(model, parts, photo()), Answers
    )


def test_what_fp32_hardly_sees_is_left_out():
    class Faint(Tiles):
        def predict(self, embeddings, prompts, *, multimask=True):
            (answer,) = super().predict(embeddings, prompts, multimask=multimask)
            if not multimask:
                answer.masks[:, :, :, :] = False
                answer.masks[:, :, 0, : NEGLIGIBLE - 1] = True
            return [answer]

    asked = agreement.questions_of(Faint(), photo())
    assert len(asked) == 0


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(2):
        coarse = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(coarse).resize((60, 48)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def load():
    """A tiny SAM under a recipe; one that quantizes spoils it instead."""
    state = random_sam().state_dict()

    def make(recipe: Recipe) -> SamFast:
        sam = random_sam()
        sam.load_state_dict(state)
        plain = replace(recipe, quantize=None, quantized_layers=LAYERS)
        if recipe.quantize:
            with torch.no_grad():
                sam.image_encoder.blocks[0].mlp.lin1.weight.mul_(-1)
        return fast(sam, plain)

    return make


def test_measure_on_a_model(photos, load):
    recipes = {
        "same": Recipe(),
        "spoilt": Recipe(quantize="int8"),
        "half": Recipe(dtype=torch.bfloat16),
    }
    done: list[int] = []
    figures = agreement.measure(load, photos, recipes, "reference", progress=done.append)
    assert sum(done) == agreement.steps(len(photos), recipes) == 2 * (1 + 2 + 3)
    assert list(figures) == list(recipes)
    assert figures["same"]["loss_points"] == 0 and figures["same"]["agreement_miou"] == 1
    assert figures["half"]["yardstick_miou"] == figures["half"]["agreement_miou"] < 1
    assert figures["spoilt"]["agreement_miou"] < figures["half"]["agreement_miou"]
    assert figures["spoilt"]["loss_points"] > figures["half"]["loss_points"]


def test_bad_photos_are_named_and_left_out(photos, load, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    said: list[str] = []
    figures = agreement.measure(
        load, [broken, *photos], {"same": Recipe()}, "sdpa", on_error=said.append
    )
    assert figures["same"]["photos"] == len(photos)
    assert len(said) == 1 and str(broken) in said[0]
    with pytest.raises(DatasetError, match="1 cannot be read"):
        agreement.measure(load, [broken], {"same": Recipe()}, "sdpa", on_error=said.append)


def test_a_recipe_that_the_model_refuses_is_left_out(photos, load):
    half = Recipe(quantize="int8", attention="sdpa")

    def make(recipe):
        if recipe == half:
            raise UnsupportedRecipeError("not\nwith this model")
        return load(recipe)

    said: list[str] = []
    figures = agreement.measure(
        make, photos[:1], {"half": half, "same": Recipe()}, "sdpa", on_refusal=said.append
    )
    assert list(figures) == ["same"]
    assert said == ["half is left out: not with this model"]
    with pytest.raises(UnsupportedRecipeError):
        agreement.measure(make, photos[:1], {"half": half}, "sdpa", on_refusal=said.append)
