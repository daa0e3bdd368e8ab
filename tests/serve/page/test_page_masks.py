"""The page's arithmetic of masks against samfast's own, in the browser that runs it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from samfast import coco_rle
from tests.serve.page.photo_page import pixels

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 4), (37, 61), (64, 64)]


def some_masks() -> list[np.ndarray]:
    """Masks of many shapes: empty, full, noise, and blocks with holes."""
    draw = np.random.default_rng(0)
    masks = []
    for height, width in SHAPES:
        masks += [np.zeros((height, width), bool), np.ones((height, width), bool)]
        masks += [draw.random((height, width)) < share for share in (0.05, 0.5, 0.95)]
        blocks = draw.random((height // 4 + 1, width // 4 + 1)) < 0.5
        masks.append(blocks.repeat(4, 0).repeat(4, 1)[:height, :width])
    return masks


MASKS = some_masks()


@pytest.fixture
def scripts(tab, label_server):
    """Runs a function of the page's modules: `run(module, body, argument)`."""
    page = tab().open(label_server.address).page

    def run(module: str, body: str, argument: object) -> object:
        code = f"async (given) => {{ const it = await import('./{module}'); {body} }}"
        return page.evaluate(code, argument)

    return run


def test_run_lengths_are_read_and_written_as_samfast_does(scripts):
    rles = [coco_rle.encode(mask) for mask in MASKS]
    body = """return given.map((rle) => {
        const mask = it.parseMask(rle);
        const text = Array.from(it.pixelsOf(mask), String).join("");
        const { height, width } = mask;
        return { height, width, text, again: it.formatMask(mask),
                 area: it.areaOf(mask), bounds: it.boundsOf(mask) };
    });"""
    answers = scripts("rle.js", body, rles)
    for mask, rle, answer in zip(MASKS, rles, answers, strict=True):
        np.testing.assert_array_equal(pixels(answer), mask)
        assert answer["again"] == rle
        assert answer["area"] == mask.sum()
        bounds = answer["bounds"]
        if bounds is None:
            assert not mask.any()
        else:
            box = [bounds[name] for name in ("x", "y", "width", "height")]
            assert box == coco_rle.bounding_box(rle)


def test_long_runs_are_read(scripts):
    mask = np.zeros((5000, 6000), bool)
    mask[:, 3000:] = True
    mask[17, 20] = True
    rle = coco_rle.encode(mask)
    body = "return it.areaOf(it.parseMask(given)) + ' ' + it.formatMask(it.parseMask(given)).counts"
    assert scripts("rle.js", body, rle) == f"{mask.sum()} {rle['counts']}"


@pytest.mark.parametrize("counts", ["~", "0", "", "PPa21^51", "\x7f"])
def test_damaged_text_is_refused(scripts, counts):
    body = "try { it.parseMask(given); return 'taken'; } catch (error) { return error.message; }"
    said = scripts("rle.js", body, {"size": [4, 6], "counts": counts})
    assert "damaged mask" in said


def test_union_difference_and_contains(scripts):
    draw = np.random.default_rng(1)
    pairs = [(mask, draw.random(mask.shape) < 0.5) for mask in MASKS]
    body = """return given.map(([one, other]) => {
        const [a, b] = [it.parseMask(one), it.parseMask(other)];
        const has = [];
        for (let y = 0; y < a.height; y += 1)
            for (let x = 0; x < a.width; x += 1) has.push(it.contains(a, x, y) ? 1 : 0);
        return { union: it.formatMask(it.union(a, b)), has: has.join(""),
                 difference: it.formatMask(it.difference(a, b)),
                 same: [it.sameMask(a, it.parseMask(one)), it.sameMask(a, b)],
                 outside: [[-1, 0], [0, -1], [a.width, 0], [0, a.height]].some(
                     ([x, y]) => it.contains(a, x, y)) };
    });"""
    given = [[coco_rle.encode(one), coco_rle.encode(other)] for one, other in pairs]
    for (one, other), answer in zip(pairs, scripts("rle.js", body, given), strict=True):
        assert answer["union"] == coco_rle.encode(one | other)
        assert answer["difference"] == coco_rle.encode(one & ~other)
        assert answer["has"] == "".join(map(str, one.ravel().astype(int)))
        assert answer["same"] == [True, bool((one == other).all())]
        assert not answer["outside"]


def filled(rings: list[list[list[int]]], shape: tuple[int, int]) -> np.ndarray:
    """The pixels inside rings by the even-odd rule: each vertical edge flips those right of it."""
    flips = np.zeros((shape[0], shape[1] + 1), int)
    for ring in rings:
        for (x, y), (next_x, next_y) in zip(ring, [*ring[1:], ring[0]], strict=True):
            if x == next_x:
                flips[min(y, next_y) : max(y, next_y), x] += 1
    return np.cumsum(flips, 1)[:, :-1] % 2 == 1


def test_rings_filled_are_the_mask_again(scripts):
    rles = [coco_rle.encode(mask) for mask in MASKS]
    body = """const { parseMask } = await import("./rle.js");
        return given.map((rle) => {
            const rings = it.ringsOf(parseMask(rle));
            return { rings, areas: rings.map(it.signedArea) };
        });"""
    for mask, answer in zip(MASKS, scripts("outlines.js", body, rles), strict=True):
        rings = answer["rings"]
        np.testing.assert_array_equal(filled(rings, mask.shape), mask)
        # Exteriors count positive and holes negative, twice their pixels.
        assert sum(answer["areas"]) == 2 * mask.sum()
        for ring in rings:
            turns = np.diff(np.array([*ring, ring[0]]), axis=0)
            assert ((turns != 0).sum(1) == 1).all()  # edges run along rows and columns, and turn
            assert all(a[0] * b[0] + a[1] * b[1] == 0 for a, b in pairwise(turns))
