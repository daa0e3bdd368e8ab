import json

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
import zarr
from pycocotools.coco import COCO

from samfast.errors import OutputError
from samfast.scenes import scene_objects
from samfast.scenes.segment_scene import SceneOptions, segment_scene
from tests.scenes.colour_engine import ColourEngine, coloured_scene
from tests.scenes.scene_files import UTM, write_tiff

SCENE, LABELS = coloured_scene((600, 800), 40, seed=3)


@pytest.fixture
def objects(tmp_path):
    path = write_tiff(tmp_path / "scene.tif", SCENE)
    with segment_scene(ColourEngine(), path, SceneOptions(tile=256, overlap=64), {}) as found:
        yield found


def same_parts(labels, others):
    """Whether two label images part the pixels alike."""
    pairs = np.unique(np.stack([labels.ravel(), others.ravel()]), axis=1)
    counts = [len(np.unique(row)) for row in pairs]
    return counts[0] == counts[1] == pairs.shape[1]


@pytest.mark.parametrize("dense", [True, False], ids=["one mask", "a mask a cell"])
def test_the_geopackage_has_the_crs_areas_and_outlines(objects, dense, tmp_path, monkeypatch):
    if not dense:
        monkeypatch.setattr(scene_objects, "MAX_DENSE_PIXELS", 0)
    objects.write_geopackage(tmp_path / "scene.gpkg")
    meta, _, geometry, fields = pyogrio.raw.read(tmp_path / "scene.gpkg", layer="objects")
    assert meta["crs"] == "EPSG:32618"
    values = dict(zip(meta["fields"], fields, strict=True))
    assert len(geometry) == len(objects)
    records = list(objects)
    assert values["id"].tolist() == [record["id"] for record in records]
    assert values["area_px"].tolist() == [record["area"] for record in records]
    # A pixel is half a metre wide.
    assert np.allclose(values["area_m2"], values["area_px"] / 4)
    shapes = shapely.from_wkb(geometry)
    assert np.allclose(shapely.area(shapes), values["area_m2"])
    assert shapely.is_valid(shapes).all()
    assert values["tiles"].max() > 1
    burnt = rasterio.features.rasterize(
        zip(shapes, values["id"].tolist(), strict=True), out_shape=LABELS.shape, transform=UTM
    )
    assert same_parts(burnt, LABELS)


def test_geojson_is_the_same_with_its_crs(objects, tmp_path):
    objects.write_geopackage(tmp_path / "scene.gpkg")
    objects.write_geojson(tmp_path / "scene.geojson")
    read = [pyogrio.raw.read(tmp_path / f"scene.{end}") for end in ("gpkg", "geojson")]
    assert read[1][0]["crs"] == "EPSG:32618"
    a, b = (shapely.from_wkb(each[2]) for each in read)
    assert shapely.equals(a, b).all()
    loaded = json.loads((tmp_path / "scene.geojson").read_text())
    assert loaded["features"][0]["properties"]["cut"] is False


def test_label_rasters_hold_the_ids(objects, tmp_path):
    objects.write_labels(tmp_path / "scene.labels.tif")
    objects.write_labels(tmp_path / "scene.labels.zarr")
    with rasterio.open(tmp_path / "scene.labels.tif") as file:
        labels = file.read(1)
        assert (file.crs.to_epsg(), file.transform, file.nodata) == (32618, UTM, 0)
        assert file.block_shapes == [(512, 512)]
    assert same_parts(labels, LABELS)
    group = zarr.open_group(tmp_path / "scene.labels.zarr", mode="r")
    assert group["labels"].attrs["labels"] == ["objects"]
    assert (np.asarray(group["labels/objects/0"]) == labels).all()
    areas = {record["id"]: record["area"] for record in objects}
    assert {i: int((labels == i).sum()) for i in areas} == areas


def test_coco_has_rle_in_scene_pixels(objects, tmp_path, capsys):
    objects.write_coco(tmp_path / "scene.json")
    coco = COCO(tmp_path / "scene.json")
    (image,) = coco.loadImgs(coco.getImgIds())
    assert (image["height"], image["width"], image["file_name"]) == (600, 800, "scene.tif")
    labels = np.zeros(LABELS.shape, dtype=np.int64)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"]
        labels[mask == 1] = annotation["id"]
    assert same_parts(labels, LABELS)


def test_an_unwritable_path_is_one_line_and_leaves_nothing(objects, tmp_path):
    for name in ("scene.gpkg", "scene.geojson", "scene.labels.tif", "scene.json"):
        write = {
            "scene.gpkg": objects.write_geopackage,
            "scene.geojson": objects.write_geojson,
            "scene.labels.tif": objects.write_labels,
            "scene.json": objects.write_coco,
        }[name]
        with pytest.raises(OutputError) as error:
            write(tmp_path / "absent" / name)
        assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"scene.tif"}


def test_a_scene_without_objects_has_whole_files(tmp_path):
    empty = np.zeros((300, 300, 3), np.uint8)
    with segment_scene(ColourEngine(), empty, SceneOptions(tile=256, overlap=64), {}) as objects:
        assert len(objects) == 0 and list(objects) == []
        objects.write_geopackage(tmp_path / "a.gpkg")
        objects.write_geojson(tmp_path / "a.geojson")
        objects.write_labels(tmp_path / "a.tif")
        objects.write_coco(tmp_path / "a.json")
    assert len(pyogrio.raw.read(tmp_path / "a.gpkg")[2]) == 0
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []
    with rasterio.open(tmp_path / "a.tif") as file:
        assert not file.read().any()
    assert json.loads((tmp_path / "a.json").read_text())["annotations"] == []


def test_smaller_objects_lie_on_top(tmp_path):
    labels = np.zeros((300, 300), dtype=np.int64)
    labels[20:280, 20:280] = 1
    labels[100:200, 100:200] = 2

    class Filling(ColourEngine):
        """The large object's mask covers the small one's."""

        def segment_each(self, images, **options):
            for records in super().segment_each(images):
                from samfast import coco_rle
                from tests.scenes.colour_engine import record_of

                masks = [coco_rle.decode(record["segmentation"]) for record in records]
                masks.sort(key=lambda mask: mask.sum())
                yield type(records)(
                    map(record_of, [masks[0], masks[0] | masks[1]]), records.size, records.counts
                )

    from tests.scenes.colour_engine import colours_of

    with segment_scene(
        Filling(), colours_of(labels), SceneOptions(tile=512, overlap=0), {}
    ) as found:
        found.write_labels(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert same_parts(file.read(1), labels)
