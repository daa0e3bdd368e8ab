import sqlite3
import warnings

import numpy as np
import pytest

from samfast import coco_rle
from samfast.errors import ImageWarning, InputError
from samfast.scenes.array_source import of_array
from samfast.scenes.segment_scene import MAX_FAILURES, SceneOptions, segment_scene
from samfast.scenes.source import SceneReadError
from samfast.scenes.tile_reader import FILL
from tests.scenes.colour_engine import COUNTS, ColourEngine, coloured_scene, colours_of

OPTIONS = SceneOptions(tile=256, overlap=64)


def masks_of(objects):
    return [coco_rle.decode(record["segmentation"]) for record in objects]


def best_iou(masks, others):
    """For each mask, its IoU with the nearest of the others."""
    a = np.stack([mask.ravel() for mask in masks]).astype(np.float64)
    b = np.stack([mask.ravel() for mask in others]).astype(np.float64)
    common = a @ b.T
    return (common / (a.sum(1)[:, None] + b.sum(1) - common)).max(1)


def areas_of(labels, least=200):
    return [labels == i for i in np.unique(labels) if i and (labels == i).sum() >= least]


@pytest.mark.parametrize("seed", range(3))
def test_objects_across_tiles_are_one(seed):
    scene, labels = coloured_scene((900, 1100), 60, seed, largest=200)
    with segment_scene(ColourEngine(), scene, OPTIONS, {}) as objects:
        assert len(objects.grid) > 20
        masks = masks_of(objects)
        large = areas_of(labels)
        assert best_iou(large, masks).min() == 1.0
        across = sum(record["tiles"] > 1 for record in objects)
        assert across > 20
        # Nothing is there twice: an object's pieces add up to it.
        assert sum(mask.sum() for mask in masks) == (labels > 0).sum()


def test_ids_are_in_order_and_the_same_again():
    scene, _ = coloured_scene((700, 700), 40)
    runs = []
    for _ in range(2):
        with segment_scene(ColourEngine(), scene, OPTIONS, {}) as objects:
            runs.append([(r["id"], r["bbox"], r["segmentation"]["counts"]) for r in objects])
    assert runs[0] == runs[1]
    assert [number for number, _, _ in runs[0]] == list(range(1, len(runs[0]) + 1))


def test_a_shifted_crop_gives_the_same_objects_inside():
    scene, _ = coloured_scene((1200, 1200), 80, largest=60)
    x, y = 333, 217
    crop = scene[y : y + 800, x : x + 800]
    with segment_scene(ColourEngine(), scene, OPTIONS, {}) as objects:
        whole = [mask[y : y + 800, x : x + 800] for mask in masks_of(objects)]
    shifted = SceneOptions(tile=256, overlap=64, origin=(x, y))
    with segment_scene(ColourEngine(), crop, shifted, {}) as objects:
        masks = masks_of(objects)
    inside = [
        m for m in masks if not (m[0].any() or m[-1].any() or m[:, 0].any() or m[:, -1].any())
    ]
    assert len(inside) > 20
    assert best_iou(inside, whole).min() == 1.0


@pytest.mark.parametrize("resolution", [0.5, 2.0, 3.3])
def test_masks_of_another_resolution_lie_where_the_objects_are(resolution):
    _, labels = coloured_scene((700, 900), 12, seed=4, largest=150)
    scene = np.where(labels[:, :, None] > 0, 255, 0).repeat(3, 2).astype(np.uint8)
    options = SceneOptions(tile=256, overlap=64, resolution=resolution)

    class Thresholding(ColourEngine):
        """Sees a pixel that interpolation has mixed as white or black, whichever is nearer."""

        def segment_each(self, images, **options):
            for image in images:
                pixels = np.where(image.pixels == np.array(FILL), FILL, image.pixels // 128 * 255)
                yield from super().segment_each(
                    iter([type(image)(pixels.astype(np.uint8), image.name)])
                )

    with segment_scene(Thresholding(), scene, options, {}) as objects:
        assert objects.grid.scale == (resolution, resolution)
        found = np.any(masks_of(objects), axis=0)
    assert found.shape == labels.shape
    # A mask cannot be better than the labels at that resolution.
    y, x = (
        ((np.floor((np.arange(n) + 0.5) / resolution) + 0.5) * resolution)
        .astype(int)
        .clip(0, n - 1)
        for n in labels.shape
    )
    (ideal,) = best_iou([labels > 0], [labels[y[:, None], x[None, :]] > 0])
    (reached,) = best_iou([labels > 0], [found])
    assert reached > ideal - 0.005


class Watching(ColourEngine):
    """Keeps what it is shown and where it is asked."""

    def __init__(self):
        super().__init__()
        self.shown, self.clicks = [], []

    def segment_each(self, images, **options):
        for image in images:
            assert image.size == (256, 256)
            self.shown.append(image.pixels)
            self.clicks.append(options)
            yield from super().segment_each(iter([image]))


def test_a_tile_smaller_than_the_input_is_shown_with_what_lies_around_it():
    scene, labels = coloured_scene((640, 640), 30)
    engine, options = Watching(), SceneOptions(tile=128, overlap=32)
    with segment_scene(engine, scene, options, {"points_per_side": 16}) as objects:
        grid = objects.grid
        assert grid.side == 256
        assert best_iou(areas_of(labels), masks_of(objects)).min() == 1.0
    clicks = [asked["point_grids"][0] for asked in engine.clicks]
    assert len(clicks) == len(grid) == 49
    # Tiles lie in the middle of their windows; the last ones end with the scene.
    assert all(points.min() > 0.25 and points.max() < 0.75 for points in clicks)
    assert sum(len(points) == 64 for points in clicks) == 36
    inner = [number for number in range(49) if grid.place(number) in ((1, 1), (3, 4), (4, 4))]
    for number in inner:
        x, y, _, _ = grid.window(number)
        shown = next(p for p in engine.shown if (p == scene[y : y + 256, x : x + 256]).all())
        assert not (shown == FILL).all(2).any()


def test_a_scene_that_fits_into_one_window_is_shown_once():
    scene, labels = coloured_scene((250, 200), 10)
    for origin in ((0, 0), (150, 180), (-33, 77)):
        engine = Watching()
        options = SceneOptions(tile=128, overlap=32, origin=origin)
        with segment_scene(engine, scene, options, {"points_per_side": 16}) as objects:
            assert len(objects.grid) == 1
            assert best_iou(areas_of(labels, 1), masks_of(objects)).min() == 1.0
        (pixels,), (asked,) = engine.shown, engine.clicks
        assert (pixels[:250, :200] == scene).all()
        # All clicks of the window that lie in the scene.
        (points,) = asked["point_grids"]
        assert len(points) == 16 * 12 and (points < (200 / 256, 250 / 256)).all()


class BreakingSource:
    """A scene in which windows that touch some rows cannot be read."""

    def __init__(self, array, rows):
        self._source, self._rows = of_array(array, "breaking"), rows
        self.info = self._source.info

    def read(self, bands, window, shape=None):
        if self._rows[0] < window[3] and window[1] < self._rows[1]:
            raise SceneReadError(f"breaking: rows {window[1]} to {window[3]} cannot be read")
        return self._source.read(bands, window, shape)

    def close(self):
        pass


def test_tiles_that_cannot_be_read_are_named_and_the_same_call_tries_them_again(tmp_path):
    scene, labels = coloured_scene((900, 700), 40)
    work = tmp_path / "tiles"
    with pytest.warns(ImageWarning, match="cannot be read"):
        first = segment_scene(ColourEngine(), BreakingSource(scene, (0, 10)), OPTIONS, {}, work)
    with first:
        assert len(first.failures) == first.grid.columns == 4
        done = first.store.done()
        assert len(done) == len(first.grid) - 4
        assert len(first) > 10
    engine = ColourEngine()
    with segment_scene(engine, BreakingSource(scene, (-9, -8)), OPTIONS, {}, work) as second:
        assert engine.images == 4
        assert second.failures == ()
        assert best_iou(areas_of(labels), masks_of(second)).min() == 1.0


def test_a_source_that_is_gone_is_not_asked_for_every_tile():
    scene, _ = coloured_scene((2000, 2000), 5)
    source = BreakingSource(scene, (700, 2000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        with segment_scene(ColourEngine(), source, OPTIONS, {}) as objects:
            assert len(objects.failures) == MAX_FAILURES + 1
            assert "5 tiles in a row could not be read; the" in objects.failures[-1]
            assert len(objects) > 0


def test_a_run_that_ends_midway_goes_on(tmp_path):
    scene, _ = coloured_scene((900, 900), 40)
    work = tmp_path / "tiles"

    class Ending(ColourEngine):
        def segment_each(self, images, **options):
            for records in super().segment_each(images):
                if self.images > 7:
                    raise KeyboardInterrupt
                yield records

    with pytest.raises(KeyboardInterrupt):
        segment_scene(Ending(), scene, OPTIONS, {}, work)
    engine = ColourEngine()
    seen = []
    with segment_scene(
        engine, scene, OPTIONS, {}, work, lambda done, total: seen.append((done, total))
    ) as objects:
        assert engine.images == len(objects.grid) - 7
        assert seen[0] == (7, 25) and seen[-1] == (25, 25)
        resumed = [r["segmentation"] for r in objects]
    with segment_scene(ColourEngine(), scene, OPTIONS, {}) as objects:
        assert resumed == [r["segmentation"] for r in objects]


class NotedConnection(sqlite3.Connection):
    is_closed = False

    def close(self):
        self.is_closed = True
        super().close()


def test_a_workspace_of_another_job_is_refused(tmp_path, monkeypatch):
    opened, connect = [], sqlite3.connect

    def note(*place, **options):
        opened.append(connect(*place, factory=NotedConnection, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", note)
    scene, _ = coloured_scene((300, 300), 5)
    work = tmp_path / "tiles"
    segment_scene(ColourEngine(), scene, OPTIONS, {}, work).close()
    with pytest.raises(InputError, match=r"tiles of another run \(overlap was 64\); remove it"):
        segment_scene(ColourEngine(), scene, SceneOptions(tile=256, overlap=32), {}, work)
    (tmp_path / "text").write_text("not a database, but long enough to be looked at" * 9)
    with pytest.raises(InputError, match="not a file of tiles"):
        segment_scene(ColourEngine(), scene, OPTIONS, {}, tmp_path / "text")
    assert [each.is_closed for each in opened] == [True] * 3


def test_what_has_no_data_is_not_segmented_and_empty_tiles_are_not_shown():
    labels = np.ones((600, 600), dtype=np.int64)
    labels[:300, :300] = 2
    values = colours_of(labels).astype(np.float32)
    values[:, 280:] = np.nan
    engine = ColourEngine()
    options = SceneOptions(tile=256, overlap=64, value_range=(0, 255))
    with segment_scene(engine, values, options, {}) as objects:
        assert engine.images < len(objects.grid)
        masks = masks_of(objects)
    assert len(masks) == 2
    assert not np.any([mask[:, 280:] for mask in masks])
    assert best_iou([(labels == 2) & (np.arange(600) < 280)], masks).min() == 1.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile": 1.5}, "tile=1.5; give a whole number"),
        ({"resolution": 0}, "resolution=0; give a positive number"),
        ({"overlap": 200}, "from 0 to 128, half of the tile"),
        ({"bands": (1, 7, 2)}, "give one or three from 1 to 3"),
        ({"value_range": (5, 5)}, "black first"),
        ({"percentiles": (2, 101)}, "from 0 to 100"),
    ],
)
def test_wrong_options_are_one_line(wrong, message):
    scene, _ = coloured_scene((300, 300), 5)
    with pytest.raises(InputError, match=message) as error:
        segment_scene(ColourEngine(), scene, SceneOptions(**{"tile": 256, **wrong}), {})
    assert "\n" not in str(error.value)


def test_cut_objects_are_completed_by_a_second_look():
    """An engine that sees nothing in every second tile: what reaches into it stays cut."""
    scene, labels = coloured_scene((900, 1100), 80, 2, largest=60)

    class Blinking(ColourEngine):
        def segment_each(self, images, **options):
            for number, records in enumerate(super().segment_each(images)):
                if number % 2:
                    records = type(records)([], (256, 256), COUNTS)
                yield records

    first = SceneOptions(tile=256, overlap=32)
    with segment_scene(Blinking(), scene, first, {}) as objects:
        cut = {record["id"] for record in objects if record["cut"]}
        before = {record["id"]: record["area"] for record in objects}
    assert len(cut) > 5
    second = SceneOptions(tile=256, overlap=32, complete_cut=True)
    with segment_scene(Blinking(), scene, second, {}) as objects:
        after = {record["id"]: record for record in objects}
    assert sum(record["cut"] for record in after.values()) <= len(cut) // 4
    whole = areas_of(labels, 1)
    for number in cut & after.keys():
        if after[number]["cut"]:
            continue
        mask = coco_rle.decode(after[number]["segmentation"])
        assert best_iou([mask], whole).min() == 1.0
        assert mask.sum() >= before[number]
    # Nothing is there twice, and what was whole is as it was.
    masks = [coco_rle.decode(record["segmentation"]) for record in after.values()]
    assert np.sum(masks, axis=0).max() == 1
    assert all(after[number]["area"] == before[number] for number in before.keys() - cut)
