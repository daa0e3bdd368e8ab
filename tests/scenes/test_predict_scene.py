import numpy as np
import pyogrio
import pytest
import shapely

from samfast import coco_rle
from samfast.errors import ImageWarning, PromptError
from samfast.scenes import FolderCache, MemoryCache
from samfast.scenes.array_source import of_array
from samfast.scenes.predict_scene import COARSE, coarse_windows, predict_scene, window_of
from samfast.scenes.scene_prompts import ScenePrompt
from samfast.scenes.segment_scene import SceneOptions
from samfast.scenes.source import SceneReadError
from samfast.scenes.tile_grid import TileGrid
from samfast.types import Prompts
from tests.scenes.colour_engine import ColourEngine, coloured_scene
from tests.scenes.scene_files import UTM, write_tiff

SCENE, LABELS = coloured_scene((900, 1200), 60, seed=5, largest=70)
OPTIONS = SceneOptions(tile=256, overlap=0)


def clicks():
    """A click in each larger object, and its box."""
    numbers = [i for i in np.unique(LABELS) if i and (i == LABELS).sum() > 800]
    points, boxes = [], []
    for number in numbers:
        y, x = np.nonzero(number == LABELS)
        points.append((x[len(x) // 2], y[len(y) // 2]))
        boxes.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
    return numbers, np.array(points), np.array(boxes)


def masks_by_id(objects):
    return {record["id"]: coco_rle.decode(record["segmentation"]) for record in objects}


def test_each_click_is_answered_by_its_object():
    numbers, points, _ = clicks()
    prompts = Prompts(points=points[:, None], labels=np.ones((len(points), 1), int))
    with predict_scene(ColourEngine(), SCENE, prompts, OPTIONS) as objects:
        masks = masks_by_id(objects)
    assert sorted(masks) == list(range(1, len(numbers) + 1))
    for index, number in enumerate(numbers, 1):
        assert (masks[index] == (number == LABELS)).mean() > 0.999


def test_windows_are_centred_but_for_the_lattice_and_large_prompts_zoom():
    grid = TileGrid((9000, 9000), 1024, 0)
    draw, prepared = np.random.default_rng(0), coarse_windows(grid)
    assert len(prepared) == len(set(prepared)) == 17**2
    for x, y in draw.uniform(0, 9000, (200, 2)):
        prompt = ScenePrompt(np.array([[x, y]]), np.ones(1, int), None)
        window = window_of(prompt, grid)
        x0, y0, x1, y1 = window.box(1024)
        assert window.zoom == 1
        assert x0 >= 0 and x1 <= 9000 and y0 >= 0 and y1 <= 9000
        for middle, wished in (((x0 + x1) / 2, x), ((y0 + y1) / 2, y)):
            inside = min(max(wished, 512), 9000 - 512)
            assert abs(middle - inside) <= 512 / COARSE
        assert window in prepared
    box = ScenePrompt(np.zeros((0, 2)), np.zeros(0, int), np.array([1000.0, 1000, 3000, 2000]))
    window = window_of(box, grid)
    x0, y0, x1, y1 = window.box(1024)
    assert window.zoom == 4 and x0 < 1000 and y0 < 1000 and x1 > 3000 and y1 > 2000


def test_a_large_box_is_answered_in_a_larger_window():
    number = np.bincount(LABELS[LABELS > 0]).argmax()
    scene = np.zeros((1500, 1500, 3), np.uint8)
    scene[200:1300, 300:1200] = (200, 10, 10)
    prompts = Prompts(boxes=[[300, 200, 1200, 1300]])
    with predict_scene(ColourEngine(), scene, prompts, OPTIONS) as objects:
        (record,) = objects
    assert number
    assert abs(record["area"] - 1100 * 900) < 0.02 * 1100 * 900


def test_map_coordinates_and_a_geopackage_give_the_same(tmp_path):
    path = write_tiff(tmp_path / "scene.tif", SCENE)
    _, _, boxes = clicks()
    to_map = np.array(UTM * (boxes[:, 0], boxes[:, 1])), np.array(UTM * (boxes[:, 2], boxes[:, 3]))
    low, high = np.minimum(*to_map).T, np.maximum(*to_map).T
    shapes = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
    pyogrio.raw.write(
        tmp_path / "boxes.gpkg",
        shapely.to_wkb(shapes),
        [],
        [],
        geometry_type="Polygon",
        crs="EPSG:32618",
    )
    found = []
    for prompts, coordinates in (
        (Prompts(boxes=boxes), "pixels"),
        (Prompts(boxes=np.concatenate([low, high], 1)), "map"),
        (tmp_path / "boxes.gpkg", "pixels"),
    ):
        with predict_scene(
            ColourEngine(), path, prompts, OPTIONS, coordinates=coordinates
        ) as objects:
            found.append([(r["id"], r["segmentation"]["counts"]) for r in objects])
    assert found[0] == found[1] == found[2]


def test_a_geopackage_in_another_crs_is_transformed(tmp_path):
    path = write_tiff(tmp_path / "scene.tif", SCENE)
    from rasterio.warp import transform

    _, points, _ = clicks()
    x, y = UTM * (points[:, 0] + 0.5, points[:, 1] + 0.5)
    lon, lat = transform("EPSG:32618", "EPSG:4326", x.tolist(), y.tolist())
    pyogrio.raw.write(
        tmp_path / "clicks.gpkg",
        shapely.to_wkb(shapely.points(lon, lat)),
        [],
        [],
        geometry_type="Point",
        crs="EPSG:4326",
    )
    prompts = Prompts(points=points[:, None] + 0.5, labels=np.ones((len(points), 1), int))
    found = []
    for each in (prompts, tmp_path / "clicks.gpkg"):
        with predict_scene(ColourEngine(), path, each, OPTIONS) as objects:
            found.append([r["segmentation"]["counts"] for r in objects])
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_second_question_costs_no_encoding(kind, tmp_path):
    _, points, _ = clicks()
    cache = MemoryCache() if kind == "memory" else FolderCache(tmp_path / "cache")

    class Encoding(ColourEngine):
        """Its embeddings have the shape of a model's, so that they can be saved."""

        def embed(self, images):
            embeddings = super().embed(images)
            features = embeddings.features.permute(0, 3, 1, 2)[..., ::4, ::4].contiguous()
            return type(embeddings)(
                features, embeddings.original_sizes, embeddings.input_sizes, "colours"
            )

        def predict(self, embeddings, prompts, *, multimask=True):
            full = embeddings.features.permute(0, 2, 3, 1)
            full = full.repeat_interleave(4, 1).repeat_interleave(4, 2)
            wide = type(embeddings)(full, embeddings.original_sizes, embeddings.input_sizes, "")
            return super().predict(wide, prompts, multimask=multimask)

    engine = Encoding()
    prompts = Prompts(points=points[:, None], labels=np.ones((len(points), 1), int))
    answers = []
    for _ in range(2):
        with predict_scene(engine, SCENE, prompts, OPTIONS, cache=cache) as objects:
            answers.append([r["segmentation"]["counts"] for r in objects])
        encoded = engine.images
    assert answers[0] == answers[1]
    assert 0 < encoded <= len(points)
    other = SCENE.copy()
    other[:] = 255 - other
    with predict_scene(engine, other, prompts, OPTIONS, cache=cache):
        assert engine.images == 2 * encoded


def test_windows_that_cannot_be_read_are_named_and_the_others_answered():
    numbers, points, _ = clicks()

    class Breaking:
        """The upper half cannot be read."""

        def __init__(self):
            self._source = of_array(SCENE, "breaking")
            self.info, self.close = self._source.info, self._source.close

        def read(self, bands, window, shape=None):
            if window[1] < 300:
                raise SceneReadError("breaking: cannot be read")
            return self._source.read(bands, window, shape)

    prompts = Prompts(points=points[:, None], labels=np.ones((len(points), 1), int))
    with pytest.warns(ImageWarning, match="cannot be read; prompts .* are not answered"):
        objects = predict_scene(ColourEngine(), Breaking(), prompts, OPTIONS)
    with objects:
        masks = masks_by_id(objects)
    assert 0 < len(masks) < len(numbers)
    for index, mask in masks.items():
        assert (mask == (numbers[index - 1] == LABELS)).mean() > 0.999


def test_a_memory_cache_forgets_what_was_used_least():
    import torch

    from samfast.types import Embeddings

    def embeddings(value):
        return Embeddings(torch.full((1, 4, 8, 8), value), ((8, 8),), ((8, 8),), "x")

    cache = MemoryCache(max_bytes=2 * 4 * 8 * 8 * 4)
    cache.put("a", embeddings(1.0))
    cache.put("b", embeddings(2.0))
    assert cache.get("a") is not None
    cache.put("c", embeddings(3.0))
    assert cache.get("b") is None and len(cache) == 2
    assert cache.get("c") == embeddings(3.0)


@pytest.mark.parametrize(
    ("prompts", "coordinates", "message"),
    [
        (Prompts(boxes=[[10, 10, 5, 20]]), "pixels", "object 0: its box .* is empty or inverted"),
        (Prompts(points=[[[5000, 10]]], labels=[[1]]), "pixels", "object 0: it lies outside"),
        (Prompts(points=[[[50, 10]]], labels=[[0]]), "pixels", "no point lies on it"),
        (Prompts(points=[[[50, 10]]], labels=[[1, 1]]), "pixels", "a label for each point"),
        (Prompts(points=[[[50, np.nan]]], labels=[[1]]), "pixels", "finite numbers"),
        (Prompts(boxes=[[1, 1, 9, 9]]), "map", "no transform"),
        (Prompts(boxes=[[1, 1, 9, 9]]), "metres", "pixels or map"),
        (Prompts(), "pixels", "neither points nor boxes"),
        ("absent.gpkg", "pixels", "absent.gpkg: cannot be read"),
    ],
)
def test_prompts_that_do_not_fit_are_one_line(prompts, coordinates, message):
    with pytest.raises(PromptError, match=message) as error:
        predict_scene(ColourEngine(), SCENE, prompts, OPTIONS, coordinates=coordinates)
    assert "\n" not in str(error.value)
