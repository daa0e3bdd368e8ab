"""`samfast segment --tile` with an engine that finds areas of one colour."""

from __future__ import annotations

import json

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely

from samfast.cli import segment_scenes
from samfast.cli.main import main
from samfast.scenes.scene_methods import SceneMethods
from tests.scenes.colour_engine import ColourEngine, coloured_scene
from tests.scenes.scene_files import UTM, write_tiff

SCENE, LABELS = coloured_scene((500, 700), 30, seed=2)
TILES = ("--tile", "256", "--overlap", "64")


class Engine(ColourEngine, SceneMethods):
    """Ends after some images, as by Ctrl-C, if told to."""

    ends_at: int | None = None

    def segment_each(self, images, **options):
        for records in super().segment_each(images, **options):
            if self.ends_at is not None and self.images > self.ends_at:
                raise KeyboardInterrupt
            yield records


@pytest.fixture
def engine(monkeypatch, tmp_path):
    made = Engine()
    monkeypatch.setattr(segment_scenes, "load_model", lambda args: made)
    monkeypatch.chdir(tmp_path)
    write_tiff(tmp_path / "scene.tif", SCENE)
    return made


def segment(capsys, *arguments):
    """The exit code, the lines of stdout and those of stderr."""
    code = main(["segment", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_all_formats_are_written_and_the_tiles_removed(engine, capsys, tmp_path):
    formats = ("--format", "gpkg", "geojson", "coco", "labels", "zarr")
    code, out, err = segment(capsys, "scene.tif", *TILES, *formats, "--out", "found")
    assert code == 0
    names = ["gpkg", "geojson", "json", "labels.tif", "labels.zarr"]
    assert [line.rpartition("scene.")[2] for line in out] == names
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == sorted(
        f"scene.{name}" for name in names
    )
    count = len(pyogrio.raw.read("found/scene.gpkg")[2])
    assert f"scene.tif: {count} objects in" in err[-1]
    code, _, err = segment(
        capsys, "scene.tif", *TILES, *formats, "--out", "found", "--skip-existing"
    )
    assert (code, err) == (0, ["samfast: scene.tif: skipped, its files are all there"])


def test_json_on_stdout_is_a_line_a_scene(engine, capsys):
    code, out, _ = segment(capsys, "scene.tif", *TILES, "--json", "-")
    (line,) = map(json.loads, out)
    assert code == 0
    assert (line["height"], line["width"], line["failures"]) == (500, 700, [])
    assert line["objects"] > 10 and line["files"] == ["samfast-output/scene.gpkg"]


def test_an_interrupted_run_goes_on_by_the_same_command(engine, capsys, tmp_path):
    engine.ends_at = 5
    code, _, err = segment(capsys, "scene.tif", *TILES)
    assert code == 130
    assert "finished tiles are kept in samfast-output/scene.tiles" in err[0]
    engine.ends_at, engine.images = None, 0
    code, _, _ = segment(capsys, "scene.tif", *TILES)
    tiles = len(pyogrio.raw.read("samfast-output/scene.gpkg")[2])
    assert code == 0 and 0 < engine.images < 20 and tiles > 10
    assert not (tmp_path / "samfast-output" / "scene.tiles").exists()


def test_a_truncated_scene_is_written_as_far_as_it_goes(engine, capsys, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (500, 700, 3), dtype=np.uint8)
    noise[::2] = SCENE[::2]
    path = write_tiff(tmp_path / "cut.tif", noise // 64 * 64)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    code, _, err = segment(capsys, "cut.tif", "scene.tif", *TILES)
    assert code == 1
    assert (tmp_path / "samfast-output" / "cut.gpkg").exists()
    assert (tmp_path / "samfast-output" / "scene.gpkg").exists()
    text = "\n".join(err)
    assert "cut.tif: columns" in text and "could not be read and nothing was found there" in text
    assert (tmp_path / "samfast-output" / "cut.tiles").exists()


def test_prompts_in_pixels_in_the_map_and_in_a_geopackage(engine, capsys, tmp_path):
    areas = np.bincount(LABELS.ravel())
    number = int(abs(areas - 3000).argmin())  # it fits into a window
    rows, columns = np.nonzero(number == LABELS)
    x, y = int(columns[len(columns) // 2]), int(rows[len(rows) // 2])
    east, north = UTM.c + UTM.a * (x + 0.5), UTM.f + UTM.e * (y + 0.5)
    pyogrio.raw.write(
        tmp_path / "clicks.gpkg",
        shapely.to_wkb(np.array([shapely.Point(east, north)])),
        [],
        [],
        geometry_type="Point",
        crs="EPSG:32618",
    )
    labels = []
    for prompts in (
        ("--point", f"{x + 0.5},{y + 0.5}"),
        ("--point", f"{east},{north}", "--map-coordinates"),
        ("--prompts", "clicks.gpkg"),
    ):
        code, _, err = segment(capsys, "scene.tif", "--tile", "256", *prompts, "--format", "labels")
        assert code == 0, err
        with rasterio.open("samfast-output/scene.labels.tif") as file:
            labels.append(file.read(1))
    assert (labels[0] == labels[1]).all() and (labels[0] == labels[2]).all()
    assert labels[0][y, x] == 1 and ((labels[0] == 1) == (number == LABELS)).mean() > 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--overlap", "64"), "--overlap is for scenes (add --tile N)"),
        (("--format", "gpkg"), "--format gpkg is for scenes (add --tile N)"),
        (("--tile", "256", "--format", "png"), "--format png is not for --tile (choose from"),
        (("--tile", "256", "--overlay"), "--overlay is not for --tile"),
        (("--tile", "256", "--overlap", "300"), "it must be from 0 to 128, half of the tile"),
        (("--tile", "256", "--bands", "1,2"), "'1,2' is not one band or three"),
        (("--tile", "256", "--bands", "9"), "give one or three from 1 to 3"),
        (("--tile", "256", "--map-coordinates"), "--map-coordinates is for --point and --box"),
        (("--tile", "256", "--prompts", "absent.gpkg"), "absent.gpkg: cannot be read"),
        (
            ("--tile", "256", "--point", "5,5", "--points-per-side", "4"),
            "for segmenting everything",
        ),
        (("--tile", "256", "--point", "9999,5"), "object 0: it lies outside the scene"),
        (("--tile", "256", "--percentiles", "98,2"), "the first number must be the smaller one"),
    ],
)
def test_wrong_usage_is_one_line(engine, capsys, arguments, message):
    code, out, err = segment(capsys, "scene.tif", *arguments)
    assert code in (1, 2) and out == []
    assert len(err) == 1 and message in err[0]


def test_scenes_of_one_name_are_refused(engine, capsys, tmp_path):
    (tmp_path / "other").mkdir()
    write_tiff(tmp_path / "other" / "scene.tif", SCENE)
    code, _, err = segment(capsys, "scene.tif", "other/scene.tif", *TILES)
    assert code == 2 and "two scenes are called scene" in err[0]
