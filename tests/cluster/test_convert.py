"""`samfast convert`: COCO, YOLO and GeoJSON are those that `samfast segment` writes."""

from __future__ import annotations

import json
import os

import pytest
from pycocotools.coco import COCO

from samfast.cli import segment_command
from samfast.cli.main import main
from tests.cluster.conftest import FREE, files
from tests.serve.running import picture, tiny_engine

FLAGS = [
    part for each in FREE for part in ("--" + each.replace("_", "-").replace("=", " ")).split()
]


@pytest.fixture
def segmented(monkeypatch, photos, tmp_path):
    """What `samfast segment` writes with the same engine."""
    monkeypatch.setattr(segment_command, "load_model", lambda args: tiny_engine())

    def call(*more):
        out = tmp_path / "segmented"
        argv = ["segment", photos, "--recursive", "--out", out, *more]
        assert main([str(each) for each in argv]) == 0
        return out

    return call


def convert(results, to, *more):
    return main([str(each) for each in ("convert", results, "--to", to, *more)])


def test_coco_of_everything(run, photos, tmp_path, segmented, capsys):
    run(photos, tmp_path / "out")
    assert convert(tmp_path / "out", "coco") == 0
    stdout, err = capsys.readouterr()
    written = tmp_path / "out" / "instances.json"
    assert stdout == f"{written}\n"
    assert "7 images with 8 masks" in err
    segmented("--coco", tmp_path / "segment.json", *FLAGS)
    content = json.loads(written.read_text())
    assert content == json.loads((tmp_path / "segment.json").read_text())
    assert len(COCO(str(written)).getAnnIds()) == 8


@pytest.mark.parametrize("all_masks", [False, True])
def test_coco_of_prompts_keeps_ids_and_categories(run, photos, tmp_path, segmented, all_masks):
    images = [
        {"id": 70, "file_name": "2.png", "width": 80, "height": 60},
        {"id": 7, "file_name": "more/3.png", "width": 90, "height": 60},
        {"id": 8, "file_name": "4.png", "width": 100, "height": 60},
    ]
    annotations = [
        {"id": 31, "image_id": 70, "category_id": 3, "bbox": [5, 5, 40, 30]},
        {"id": 12, "image_id": 7, "category_id": 9, "bbox": [8, 2, 30, 40]},
        {"id": 13, "image_id": 70, "category_id": 9, "bbox": [1, 2, 30, 40]},
    ]
    categories = [{"id": 9, "name": "stem"}, {"id": 3, "name": "leaf"}]
    prompts = tmp_path / "prompts.json"
    prompts.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    asked = ["--prompts", prompts, *(["--all-masks"] if all_masks else [])]
    out = tmp_path / "out"
    assert run(photos, out, *asked, everything=False)[0] == 0
    assert convert(out, "coco", "--out", tmp_path / "run.json") == 0
    ours = json.loads((tmp_path / "run.json").read_text())
    expected = segmented("--coco", tmp_path / "segment.json", "--format", "coco", "yolo", *asked)
    assert ours == json.loads((tmp_path / "segment.json").read_text())
    assert len(ours["annotations"]) == (9 if all_masks else 3)
    assert convert(out, "yolo") == 0
    labels = {name: data for name, data in files(expected).items() if "labels/" in name}
    assert files(out / "yolo") == {**labels, "data.yaml": (expected / "data.yaml").read_bytes()}


@pytest.mark.parametrize("to", ["yolo", "geojson"])
def test_a_file_for_each_image(run, photos, tmp_path, segmented, to):
    run(photos, tmp_path / "out")
    assert convert(tmp_path / "out", to, "--out", tmp_path / "converted") == 0
    expected = files(segmented("--format", to, *FLAGS))
    ours = files(tmp_path / "converted")
    assert set(ours) == set(expected)
    for name, data in ours.items():
        if to == "yolo":
            assert data == expected[name]
        else:
            for one, other in zip(
                json.loads(data)["features"], json.loads(expected[name])["features"], strict=True
            ):
                assert one["geometry"] == other["geometry"]
                assert one["bbox"] == other["bbox"]
                assert one["properties"].items() <= other["properties"].items()


def test_images_of_a_list_have_files_below_the_folder(run, photos, tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    (photos / "0.jpg").write_bytes(picture(1))
    names = ["../photos/0.png", f"{photos}/2.png", f"file://{photos}/4.png", "../photos/0.jpg"]
    (tmp_path / "deep" / "list.txt").write_text("\n".join(names))
    assert run(tmp_path / "deep" / "list.txt", tmp_path / "out")[0] == 0
    assert convert(tmp_path / "out", "geojson") == 0
    place = photos.as_posix().lstrip("/")
    assert set(files(tmp_path / "out" / "geojson")) == {
        "photos/0.geojson",
        f"{place}/2.geojson",
        f"file/{place}/4.geojson",
        "photos/0-2.geojson",
    }
    assert "0.jpg: its file is called photos/0-2.*" in capsys.readouterr().err


def test_an_unfinished_run_is_converted_as_far_as_it_is(run, photos, tmp_path, capsys):
    run(photos, tmp_path / "out")
    (tmp_path / "out" / "masks" / "00000001.parquet").unlink()
    assert convert(tmp_path / "out", "coco") == 1
    assert "2 images of the run not done yet" in capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert len(content["images"]) == 5


def test_a_bit_that_a_disk_has_flipped_is_noticed(run, photos, tmp_path, capsys):
    run(photos, tmp_path / "out")
    path = tmp_path / "out" / "masks" / "00000001.parquet"
    data = bytearray(path.read_bytes())
    data[60] ^= 1  # in the first page
    path.write_bytes(data)
    assert convert(tmp_path / "out", "coco") == 2
    assert "00000001.parquet: damaged" in capsys.readouterr().err
    assert not (tmp_path / "out" / "instances.json").exists()


def test_what_is_no_run_of_masks_is_refused(run, photos, tmp_path, capsys):
    assert convert(tmp_path / "none", "coco") == 2
    assert convert(photos, "coco") == 2
    run(photos, tmp_path / "embedded", "--embeddings", everything=False)
    assert convert(tmp_path / "embedded", "coco") == 2
    run(photos, tmp_path / "out")
    assert convert(tmp_path / "out", "png") == 2
    assert convert(tmp_path / "out", "coco", "--out", tmp_path) == 2
    os.truncate(tmp_path / "out" / "manifest.json", 100)
    assert convert(tmp_path / "out", "coco") == 2
    assert "samfast run makes it again" in capsys.readouterr().err
