"""`samfast segment` of whole folders: formats, one COCO file, resumption, lines of JSON."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from samfast import outputs
from samfast.cli import segment_command
from tests.cli.stderr_lines import complaints

FORMATS = ("coco", "png", "npz", "polygons", "yolo", "geojson", "cutout", "sa1b")


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


@pytest.fixture
def tree(photos):
    """photos/ with a.png, b.png, c.png and sub/deep/a.png, sub/d.png."""
    (photos / "sub" / "deep").mkdir(parents=True)
    shutil.copy(photos / "a.png", photos / "sub" / "deep" / "a.png")
    shutil.copy(photos / "a.png", photos / "sub" / "d.png")
    return photos


def test_several_formats_at_once(run, sam, photos, tmp_path):
    code, out, err = run("segment", photos / "a.png", "--format", *FORMATS, "--out", "out")
    assert (code, complaints(err)) == (0, [])
    assert files_below(tmp_path / "out") == [
        "a.cutouts",
        "a.cutouts/1.png",
        "a.cutouts/2.png",
        "a.geojson",
        "a.json",
        "a.npz",
        "a.png",
        "a.polygons.json",
        "a.sa1b.json",
        "data.yaml",
        "labels/a.txt",
    ]
    assert len(out.splitlines()) == len(FORMATS) + 1
    assert all(os.path.exists(tmp_path / line) for line in out.splitlines())


def test_images_may_follow_the_names_of_formats(run, sam, photos, tmp_path):
    command = ("--format", "png", "npz", photos / "a.png", photos / "b.png", "--out", "out")
    code, _, err = run("segment", *command)
    assert (code, complaints(err)) == (0, [])
    assert files_below(tmp_path / "out") == ["a.npz", "a.png", "b.npz", "b.png"]


def test_no_image_is_wrong_usage(run, sam):
    assert run("segment", "--format", "png")[0] == 2


def test_one_coco_file_for_all_images(run, sam, photos, tmp_path):
    picture = Image.new("RGB", (24, 16))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(photos / "b.png", exif=exif)
    (photos / "c.png").write_bytes(b"no picture")
    code, _, err = run("segment", photos, "--coco", "all.json", "--format", "png", "--out", "out")
    assert code == 1
    assert [line for line in complaints(err) if "c.png" not in line and "turned" not in line] == []
    read = COCO(str(tmp_path / "all.json"))
    images = {image["file_name"]: image for image in read.dataset["images"]}
    assert sorted(images) == ["a.png", "b.png"]
    assert (images["a.png"]["height"], images["a.png"]["width"]) == (16, 24)
    assert (images["b.png"]["height"], images["b.png"]["width"]) == (24, 16)
    for image in images.values():
        records = json.loads((tmp_path / "out" / f"{image['file_name'][0]}.json").read_text())
        annotations = read.loadAnns(read.getAnnIds(imgIds=[image["id"]]))
        assert len(records) == len(annotations) == 2
        for record, annotation in zip(records, annotations, strict=True):
            mask = read.annToMask(annotation)
            assert np.array_equal(mask, outputs.decode(record["segmentation"]))
            x, y, width, height = map(int, annotation["bbox"])
            assert mask[y : y + height, x : x + width].all()  # rectangles
            assert mask.sum() == width * height


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
def test_supervision_reads_the_coco_file(run, sam, tree, tmp_path):
    from supervision import DetectionDataset

    assert run("segment", tree, "--recursive", "--coco", "all.json")[0] == 0
    data = DetectionDataset.from_coco(str(tree), str(tmp_path / "all.json"), force_masks=True)
    assert len(data) == 5
    for path, image, detections in data:
        assert os.path.isfile(path)
        assert image.shape == (16, 24, 3)
        assert detections.mask.sum(axis=(1, 2)).tolist() == [192, 48]


def test_recursive_keeps_the_tree(run, sam, tree, tmp_path):
    command = ("segment", tree, "--recursive", "--format", "coco", "yolo", "--out", "out")
    code, _, err = run(*command)
    assert (code, complaints(err)) == (0, [])
    stems = ["a", "b", "c", "sub/d", "sub/deep/a"]
    expected = sorted([f"{s}.json" for s in stems] + [f"labels/{s}.txt" for s in stems])
    assert files_below(tmp_path / "out") == sorted([*expected, "data.yaml"])


def test_recursive_does_not_take_its_own_results_for_photos(run, sam, tree):
    out = tree / "results"
    for _ in range(2):
        code, _, err = run("segment", tree, "--recursive", "--overlay", "--out", out)
        assert (code, complaints(err)) == (0, [])
    assert len([name for name in files_below(out) if name.endswith(".json")]) == 5


def test_without_recursive_subdirectories_are_left_alone(run, sam, tree, tmp_path):
    assert run("segment", tree, "--out", "out")[0] == 0
    assert files_below(tmp_path / "out") == ["a.json", "b.json", "c.json"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(
    run, sam, tree, tmp_path, device
):
    sam.device = torch.device(device)  # of a GPU files are written on threads
    command = ("segment", tree, "--recursive", "--coco", "all.json", "--format", "yolo", "png")
    assert run(*command, "--out", "whole")[0] == 0
    whole = (tmp_path / "all.json").read_bytes()
    (tmp_path / "all.json").unlink()
    sam.embedded.clear()
    sam.interrupt_at = 3
    assert run(*command, "--out", "out")[0] == 130
    assert not (tmp_path / "all.json").exists()
    finished = len([name for name in files_below(tmp_path / "out") if name.endswith(".json")])
    sam.interrupt_at = None
    sam.embedded.clear()
    code, _, err = run(*command, "--out", "out", "--skip-existing")
    assert (code, complaints(err)) == (0, [])
    assert len(sam.embedded) == 5 - finished
    assert f"{5 - finished} done, 0 failed, {finished} skipped" in err.splitlines()[-1]
    assert (tmp_path / "all.json").read_bytes() == whole
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_an_image_is_skipped_only_if_all_its_files_exist(run, sam, photos, tmp_path):
    command = ("segment", photos, "--format", "cutout", "coco", "--out", "out")
    assert run(*command)[0] == 0
    (tmp_path / "out" / "b.cutouts" / "1.png").unlink()
    sam.embedded.clear()
    code, out, _ = run(*command, "--skip-existing")
    assert code == 0
    assert sam.embedded == [1]
    assert out.splitlines() == [os.path.join("out", name) for name in ("b.cutouts", "b.json")]


def test_nothing_left_does_not_load_the_model(run, sam, photos, tmp_path, monkeypatch):
    assert run("segment", photos)[0] == 0
    monkeypatch.setattr(segment_command, "load_model", lambda args: pytest.fail("loaded"))
    code, out, err = run("segment", photos, "--skip-existing", "--coco", "all.json")
    assert (code, out, complaints(err)) == (0, "", [])
    assert len(COCO(str(tmp_path / "all.json")).anns) == 6


def test_a_coco_file_has_images_without_masks_too(run, sam, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sam, "_everything", lambda height, width: [])
    for skip in ([], ["--skip-existing"]):
        assert run("segment", photos, "--coco", "all.json", *skip)[0] == 0
        images = json.loads((tmp_path / "all.json").read_text())["images"]
        assert [(each["width"], each["height"]) for each in images] == [(24, 16)] * 3


def test_damaged_records_of_an_earlier_run_are_a_failure(run, sam, photos, tmp_path):
    assert run("segment", photos)[0] == 0
    (tmp_path / segment_command.OUT / "b.json").write_text("[{")
    code, _, err = run("segment", photos, "--skip-existing", "--coco", "all.json")
    assert code == 1
    (line,) = complaints(err)
    assert "b.json" in line
    assert "remove" in line


@pytest.mark.parametrize(
    ("coco", "said"),
    [
        ("photos/a.png", "overwrite"),
        ("samfast-output/a.json", "overwrite"),
        ("none/all.json", "directory"),
        ("photos", "directory"),
    ],
)
def test_a_coco_file_that_cannot_be_is_wrong_usage(run, photos, monkeypatch, coco, said):
    monkeypatch.setattr(segment_command, "load_model", lambda args: pytest.fail("loaded"))
    code, _, err = run("segment", photos, "--coco", coco)
    assert code == 2
    assert said in err


def test_lines_of_json_are_all_that_stdout_has(run, sam, photos):
    (photos / "b.png").write_bytes(b"no picture")
    code, out, _ = run("segment", photos, "--json", "-", "--format", "png", "yolo", "--out", "out")
    assert code == 1
    first, second, third = map(json.loads, out.splitlines())
    assert first["image"] == str(photos / "a.png")
    assert (first["name"], first["height"], first["width"]) == ("a.png", 16, 24)
    assert first["files"] == [os.path.join("out", "a.png"), os.path.join("out", "labels", "a.txt")]
    assert [record["area"] for record in first["records"]] == [192, 48]
    assert set(second) == {"image", "name", "error"}
    assert third["skipped"] is False


def test_a_line_of_json_comes_as_soon_as_its_image_is_done(run, sam, photos, monkeypatch):
    seen = []
    ask = sam._everything

    def everything(height, width):
        seen.append(sys.stdout.getvalue().count("\n"))
        return ask(height, width)

    monkeypatch.setattr(sam, "_everything", everything)
    assert run("segment", photos, "--json", "-")[0] == 0
    assert seen == [0, 1, 2]


def test_lines_of_json_in_a_file_leave_the_paths_on_stdout(run, sam, photos, tmp_path):
    code, out, _ = run("segment", photos, "--json", "lines.jsonl")
    assert code == 0
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == len(out.splitlines()) == 3


def test_the_closing_line_counts(run, sam, photos):
    (photos / "b.png").write_bytes(b"no picture")
    _, _, err = run("segment", photos)
    last = err.splitlines()[-1]
    assert last.startswith("samfast: 2 done, 1 failed, 0 skipped; 4 masks in ")
    assert last.endswith(" images/s")


def test_few_masks_are_explained(run, sam, photos):
    _, _, err = run("segment", photos / "a.png", "--pred-iou-thresh", "0.9")
    (line, _) = err.splitlines()
    assert "2 masks: 1024 clicks gave 3072 masks, 40 with predicted IoU above 0.9" in line
    assert "30 of them with stability 0.95 or more, 2 without duplicates" in line
    assert line.endswith("; lower --pred-iou-thresh to find more")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_threads_report_in_the_order_of_the_images(run, sam, photos, monkeypatch, device):
    import time

    from samfast.cli.segment_results import ResultWriter

    sam.device = torch.device(device)
    write = ResultWriter.write

    def slow_first(self, read, answer):
        time.sleep(0.2 if read.file.stem == "a" else 0)
        return write(self, read, answer)

    monkeypatch.setattr(ResultWriter, "write", slow_first)
    _, out, _ = run("segment", photos)
    assert [os.path.basename(line) for line in out.splitlines()] == ["a.json", "b.json", "c.json"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_clicks_within_a_photo(run, sam, photos, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def clicks(images, *, progress=None, **options):
        for image in images:
            for done in range(64, 1025, 64):
                progress(done, None)
            yield sam._everything(*image.size)

    monkeypatch.setattr(sam, "segment_each", clicks)
    assert run("segment", photos, "--out", "out")[0] == 0
    shown = terminal.getvalue()
    assert "64/1024 clicks" in shown
    assert "1024/1024 clicks" in shown
    assert "0/3" in shown


def test_without_a_terminal_each_photo_has_a_line(run, sam, photos):
    _, _, err = run("segment", photos, "--point", "5,5")
    assert err.splitlines()[:3] == [f"samfast: {photos / name}.png: 1 mask" for name in "abc"]
