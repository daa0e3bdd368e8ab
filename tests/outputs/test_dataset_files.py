"""Files that other programs read: COCO instances, YOLO labels, GeoJSON, cutouts, SA-1B."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from matplotlib.path import Path
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from samfast import coco_rle, outputs
from samfast.errors import InputError

SIZE = (12, 20)


def blobs():
    """A ring, two parts that touch at a corner, and the whole image but a pixel at its edge."""
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 2:9, 3:12] = True
    masks[0, 4:6, 5:8] = False
    masks[1, 0:4, 0:5] = masks[1, 4:9, 5:20] = True
    masks[2] = True
    masks[2, 0, 7] = False
    return masks


def record(mask, **keys):
    return {
        "segmentation": coco_rle.encode(mask),
        "area": int(mask.sum()),
        "bbox": outputs.records.bounding_box(mask),
        "predicted_iou": 0.75,
        "point_coords": [[4.0, 3.0]],
        "stability_score": 0.9,
        "crop_box": [0, 0, SIZE[1], SIZE[0]],
        **keys,
    }


@pytest.fixture
def records():
    return [record(mask) for mask in blobs()]


def filled(rings):
    """(H, W) bool: the pixels whose centres an odd number of rings enclose."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5
    inside = [Path(np.asarray(ring)).contains_points(centres) for ring in rings]
    return np.logical_xor.reduce(inside).reshape(SIZE)


@pytest.fixture
def instances(tmp_path, records):
    """A COCO file of two images, and the folder that they are in."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / name)
    path = tmp_path / "instances.json"
    with outputs.write_coco(path) as writer:
        writer.add(1, "a.png", SIZE, records)
        writer.add(2, "b.png", SIZE, records[:1])
    return path


def test_pycocotools_reads_the_instances(instances):
    read = COCO(str(instances))
    assert [image["file_name"] for image in read.loadImgs(read.getImgIds())] == ["a.png", "b.png"]
    annotations = read.loadAnns(read.getAnnIds(imgIds=[1]))
    for annotation, mask in zip(annotations, blobs(), strict=True):
        assert np.array_equal(read.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert annotation["score"] == 0.75
    assert annotations[0]["bbox"] == [3, 2, 9, 7]  # the record has 8 and 6
    assert len({each["id"] for each in read.anns.values()}) == 4
    assert [each["name"] for each in read.loadCats(read.getCatIds())] == ["object"]
    assert len(read.loadRes([{**each} for each in annotations]).anns) == 3


# Without OpenCV supervision says that it is slower.
@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
def test_supervision_reads_the_instances(instances):
    from supervision import DetectionDataset

    data = DetectionDataset.from_coco(str(instances.parent), str(instances), force_masks=True)
    assert data.classes == ["object"]
    assert len(data) == 2
    (found,) = [detections for path, _, detections in data if path.endswith("a.png")]
    assert np.array_equal(found.mask, blobs())
    assert found.xyxy[0].tolist() == [3, 2, 12, 9]


def test_instances_appear_whole_or_not_at_all(tmp_path, records):
    path = tmp_path / "instances.json"

    def fail_midway():
        with outputs.write_coco(path) as writer:
            writer.add(1, "a.png", SIZE, records)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert list(tmp_path.iterdir()) == []


def test_instances_of_no_image_are_valid(tmp_path):
    with outputs.write_coco(tmp_path / "none.json"):
        pass
    assert COCO(str(tmp_path / "none.json")).anns == {}


def test_categories_and_ids_of_prompts_are_kept(tmp_path):
    categories = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    masks = [record(blobs()[0], category_id=9, annotation_id=501)]
    with outputs.write_coco(tmp_path / "i.json", categories, keep_ids=True) as writer:
        writer.add("x1", "a.png", SIZE, masks)
    (annotation,) = json.loads((tmp_path / "i.json").read_text())["annotations"]
    assert (annotation["id"], annotation["category_id"]) == (501, 9)
    assert annotation["image_id"] == "x1"


def test_polygons_keep_holes_and_the_other_keys(tmp_path, records):
    outputs.write_polygons(tmp_path / "p.json", records)
    written = json.loads((tmp_path / "p.json").read_text())
    for each, mask in zip(written, blobs(), strict=True):
        rings = [ring for p in each["polygons"] for ring in (p["exterior"], *p["holes"])]
        assert np.array_equal(filled(rings), mask)
        assert set(each) == set(outputs.RECORD_KEYS) - {"segmentation"} | {"polygons"}
    assert len(written[0]["polygons"][0]["holes"]) == 1
    assert len(written[1]["polygons"]) == 2
    assert written[0]["bbox"] == [3, 2, 9, 7]


def test_geojson_follows_rfc_7946(tmp_path, records):
    empty = record(np.zeros(SIZE, bool))
    outputs.write_geojson(tmp_path / "p.geojson", [*records, empty])
    collection = json.loads((tmp_path / "p.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    kinds = [f["geometry"] and f["geometry"]["type"] for f in collection["features"]]
    assert kinds == ["Polygon", "MultiPolygon", "Polygon", None]
    for feature, mask in zip(collection["features"][:3], blobs(), strict=True):
        geometry = feature["geometry"]
        multi = geometry["type"] == "MultiPolygon"
        polygons = geometry["coordinates"] if multi else [geometry["coordinates"]]
        rings = [ring for polygon in polygons for ring in polygon]
        assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in rings)
        assert np.array_equal(filled(rings), mask)
        assert feature["properties"]["predicted_iou"] == 0.75
    assert collection["features"][0]["bbox"] == [3, 2, 12, 9]


def test_yolo_rows_enclose_the_mask(tmp_path, records):
    empty = record(np.zeros(SIZE, bool))
    outputs.write_yolo(tmp_path / "a.txt", [empty, *records])
    rows = (tmp_path / "a.txt").read_text().splitlines()
    assert len(rows) == 3
    for row, mask in zip(rows, blobs(), strict=True):
        index, *shares = row.split()
        assert index == "0"
        outline = np.array(shares, float).reshape(-1, 2)
        assert len(outline) >= 3
        assert outline.min() >= 0
        assert outline.max() <= 1
        assert np.array_equal(filled([outline * (SIZE[1], SIZE[0])]), mask)


def test_yolo_classes_have_names(tmp_path):
    labelled = [record(mask, category_id=key) for mask, key in zip(blobs(), (9, 7, 9), strict=True)]
    outputs.write_yolo(tmp_path / "a.txt", labelled, {7: 0, 9: 1})
    assert [row[0] for row in (tmp_path / "a.txt").read_text().splitlines()] == ["1", "0", "1"]
    outputs.write_yolo_dataset(tmp_path / "data.yaml", ["cat", 'a "dog": é'])
    read = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert read == {"train": "images", "val": "images", "names": {0: "cat", 1: 'a "dog": é'}}


def test_cutouts_show_the_photo_inside_the_mask(tmp_path, records):
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    folder = tmp_path / "a.cutouts"
    outputs.write_cutouts(folder, pixels, [records[0], record(np.zeros(SIZE, bool)), records[1]])
    assert sorted(each.name for each in folder.iterdir()) == ["1.png", "3.png"]
    picture = np.asarray(Image.open(folder / "1.png"))
    mask = blobs()[0]
    assert picture.shape == (7, 9, 4)
    assert np.array_equal(picture[..., 3] == 255, mask[2:9, 3:12])
    assert np.array_equal(picture[..., :3], pixels[2:9, 3:12])
    outputs.write_cutouts(folder, pixels, records[:1])
    assert [each.name for each in folder.iterdir()] == ["1.png"]


def test_a_cutout_needs_a_mask_of_the_photo():
    pixels = np.zeros((*SIZE, 3), np.uint8)
    with pytest.raises(InputError, match="empty"):
        outputs.cutout(pixels, np.zeros(SIZE, bool))
    with pytest.raises(InputError, match="5 x 5"):
        outputs.cutout(pixels, np.ones((5, 5), bool))


def test_sa1b_layout(tmp_path, records):
    outputs.write_sa1b(tmp_path / "a.json", records, SIZE, "a.png", image_id=4)
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["image"] == {"image_id": 4, "width": 20, "height": 12, "file_name": "a.png"}
    assert [each["id"] for each in read["annotations"]] == [1, 2, 3]
    assert set(read["annotations"][0]) == {*outputs.RECORD_KEYS, "id"}
    assert np.array_equal(coco_mask.decode(read["annotations"][0]["segmentation"]), blobs()[0])


@pytest.mark.parametrize(
    "write",
    [
        outputs.write_polygons,
        outputs.write_geojson,
        lambda path, records: outputs.write_sa1b(path, records, SIZE, "a.png"),
    ],
)
def test_what_json_cannot_hold_is_refused(tmp_path, records, write):
    with pytest.raises(InputError, match="JSON"):
        write(tmp_path / "a.json", [{**records[0], "stability_score": float("nan")}])
    assert list(tmp_path.iterdir()) == []
