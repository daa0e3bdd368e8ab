"""`--prompts`: each image has its own objects, from CSV, JSON or COCO instances."""

from __future__ import annotations

import json

import pytest
from pycocotools.coco import COCO

from samfast.cli import segment_command
from samfast.cli.prompt_files import read_prompts
from samfast.prompted_masks.prompted_objects import PromptedObject
from tests.cli.stderr_lines import complaints

CSV = """\
image,object,x,y,label,x0,y0,x1,y1,category
a.png,,5,6,,,,,,cat
a.png,7,3,4,1,,,,,dog
a.png,7,8,9,0,1,2,12,11,
b.png,,,,,1,2,9,8,
"""


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def coco(**changes):
    content = {
        "images": [
            {"id": 40, "file_name": "a.png", "width": 24, "height": 16},
            {"id": 50, "file_name": "b.png", "width": 24, "height": 16},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog", "supercategory": "pet"}],
        "annotations": [
            {"id": 900, "image_id": 40, "category_id": 8, "bbox": [2, 2, 10, 10]},
            {"id": 901, "image_id": 50, "category_id": 3, "bbox": [0, 0, 4, 4]},
            {"id": 902, "image_id": 40, "category_id": 3, "bbox": [1, 1, 3, 3]},
            {"id": 903, "image_id": 40, "category_id": 3, "bbox": [1, 1, 3, 3], "iscrowd": 1},
        ],
    }
    return {**content, **changes}


def test_csv(tmp_path):
    prompts = read_prompts(write(tmp_path / "p.csv", "\ufeff" + CSV))
    assert prompts.categories == [
        {"id": 1, "name": "cat"},
        {"id": 2, "name": "dog"},
        {"id": 3, "name": "object"},
    ]
    assert prompts.objects == {
        "a.png": (
            PromptedObject(((5.0, 6.0, 1),), None, 1),
            PromptedObject(((3.0, 4.0, 1), (8.0, 9.0, 0)), (1.0, 2.0, 12.0, 11.0), 2),
        ),
        "b.png": (PromptedObject((), (1.0, 2.0, 9.0, 8.0), 3),),
    }


def test_json(tmp_path):
    content = {
        "a.png": [
            {"points": [[5, 6], [7, 8]], "labels": [1, 0]},
            {"points": [[3, 4]], "box": [1, 2, 12, 11], "category": "cat"},
        ],
        "b.png": [],
    }
    prompts = read_prompts(write(tmp_path / "p.json", content))
    assert prompts.objects["a.png"] == (
        PromptedObject(((5.0, 6.0, 1), (7.0, 8.0, 0)), None, 2),
        PromptedObject(((3.0, 4.0, 1),), (1.0, 2.0, 12.0, 11.0), 1),
    )
    assert prompts.objects["b.png"] == ()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", "x,y\n1,2\n", "image"),
        ("p.csv", "image,x,y\na.png,1\n", "line 2"),
        ("p.csv", "image,x,y\na.png,1,2\na.png,1,z\n", "line 3"),
        ("p.csv", "image,x,y,label\na.png,1,2,5\n", "label"),
        ("p.csv", "image,x,y\na.png,,\n", "neither"),
        ("p.csv", "image,x0,y0,x1,y1\na.png,5,5,2,9\n", "inverted"),
        ("p.csv", "image,x,y\n" + "a" * 200_000 + ",1,2\n", "field larger"),
        ("p.json", "{", "JSON"),
        ("p.json", [1], "photo.jpg"),
        ("p.json", {"a.png": [{"point": [1, 2]}]}, "'point'"),
        ("p.json", {"a.png": [{}]}, "neither points nor a box"),
        ("p.json", {"a.png": [{"points": [[1, 2]], "labels": [1, 1]}]}, "labels"),
        ("p.json", {"a.png": [{"box": [1, 2, "x", 4]}]}, "4 numbers"),
        ("p.json", coco(images=[{"file_name": "a.png"}]), "id of its own"),
        ("p.json", coco(annotations=[{"id": 1, "image_id": 3, "bbox": [0, 0, 1, 1]}]), "image_id"),
        ("p.json", coco(annotations=[{"id": 1, "image_id": 40}]), "4 numbers"),
    ],
)
def test_wrong_files_are_refused_before_any_work(
    run, photos, tmp_path, monkeypatch, name, content, said
):
    monkeypatch.setattr(segment_command, "load_model", lambda args: pytest.fail("loaded"))
    write(tmp_path / name, content)
    code, out, err = run("segment", photos, "--prompts", name)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert name in line
    assert said in line


def test_a_missing_file_and_prompts_given_twice(run, photos):
    assert run("segment", photos, "--prompts", "gone.csv")[0] == 2
    code, _, err = run("segment", photos, "--prompts", "gone.csv", "--point", "3,4")
    assert code == 2
    assert "--point" in err


def test_each_image_is_asked_its_own(run, sam, photos, tmp_path):
    write(tmp_path / "p.csv", CSV)
    code, _, err = run("segment", photos, "--prompts", "p.csv", "--out", "out", "--format", "yolo")
    assert code == 0
    assert sam.asked == [
        ([[[5.0, 6.0]]], [[1]], None, True),
        ([[[3.0, 4.0], [8.0, 9.0]]], [[1, 0]], [[1.0, 2.0, 12.0, 11.0]], False),
        (None, None, [[1.0, 2.0, 9.0, 8.0]], False),
    ]
    assert complaints(err) == ["samfast: 1 image skipped, which p.csv does not name"]
    assert "2 done, 0 failed, 1 skipped" in err.splitlines()[-1]
    rows = (tmp_path / "out" / "labels" / "a.txt").read_text().splitlines()
    assert [row.split()[0] for row in rows] == ["0", "1"]
    assert '2: "object"' in (tmp_path / "out" / "data.yaml").read_text()


def test_coco_ids_are_kept_so_that_results_can_be_joined(run, sam, photos, tmp_path):
    write(tmp_path / "p.json", coco())
    code, _, _ = run("segment", photos, "--prompts", "p.json", "--coco", "all.json", "--out", "o")
    assert code == 0
    read = COCO(str(tmp_path / "all.json"))
    assert {key: each["image_id"] for key, each in read.anns.items()} == {900: 40, 902: 40, 901: 50}
    assert {key: each["category_id"] for key, each in read.anns.items()} == {900: 8, 902: 3, 901: 3}
    assert read.cats[8]["supercategory"] == "pet"
    assert read.annToMask(read.anns[900])[2:12, 2:12].all()
    records = json.loads((tmp_path / "o" / "a.json").read_text())
    assert [record["annotation_id"] for record in records] == [900, 902]


def test_three_masks_of_an_annotation_get_ids_of_their_own(run, sam, photos, tmp_path):
    write(tmp_path / "p.json", coco())
    command = ("--prompts", "p.json", "--coco", "all.json", "--all-masks")
    assert run("segment", photos, *command)[0] == 0
    read = COCO(str(tmp_path / "all.json"))
    assert sorted(read.anns) == list(range(1, 10))
    assert [read.anns[number]["annotation_id"] for number in (1, 2, 3)] == [900] * 3


def test_a_name_fits_one_image(run, sam, photos, tmp_path):
    (photos / "sub").mkdir()
    (photos / "a.png").rename(photos / "sub" / "b.png")
    content = {"sub/b.png": [{"box": [1, 1, 5, 5]}], "photos/c.png": [{"box": [2, 2, 6, 6]}]}
    write(tmp_path / "p.json", content)
    code, _, err = run("segment", photos, "--recursive", "--prompts", "p.json", "--out", "out")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.json")) == ["b.json", "c.json"]
    assert (tmp_path / "out" / "sub" / "b.json").is_file()  # and not photos/b.png
    assert "1 image skipped" in err


def test_an_end_of_a_path_is_enough_if_it_is_unique(run, sam, photos, tmp_path):
    folders = photos / "x" / "images", photos / "y" / "images"
    for name, folder in zip("ab", folders, strict=True):
        folder.mkdir(parents=True)
        (photos / f"{name}.png").rename(folder / "same.png")
    content = {"x/images/same.png": [{"box": [1, 1, 5, 5]}], "images/same.png": []}
    write(tmp_path / "p.json", content)
    command = (*(str(folder) for folder in folders), "--prompts", "p.json", "--json", "-")
    code, out, _ = run("segment", *command)
    assert code == 0
    (line,) = map(json.loads, out.splitlines())
    assert line["name"] == "x/images/same.png"


def test_an_image_without_objects_has_no_masks(run, sam, photos, tmp_path):
    write(tmp_path / "p.json", {"a.png": [], "b.png": [{"box": [1, 1, 5, 5]}]})
    code, _, _ = run("segment", photos, "--prompts", "p.json", "--coco", "all.json", "--out", "out")
    assert code == 0
    assert json.loads((tmp_path / "out" / "a.json").read_text()) == []
    assert len(json.loads((tmp_path / "all.json").read_text())["images"]) == 2


def test_prompts_of_other_images_are_a_mistake(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(segment_command, "load_model", lambda args: pytest.fail("loaded"))
    write(tmp_path / "p.json", {"other.png": [{"box": [1, 1, 5, 5]}]})
    code, _, err = run("segment", photos, "--prompts", "p.json")
    assert code == 2
    assert "names none of the images" in err


def test_an_object_outside_is_named_by_its_place_in_the_file(run, sam, photos, tmp_path):
    objects = [{"box": [1, 1, 5, 5]}, {"points": [[3, 3]]}, {"box": [1, 1, 50, 50]}]
    write(tmp_path / "p.json", {"a.png": objects})
    code, _, err = run("segment", photos / "a.png", "--prompts", "p.json")
    assert code == 1
    assert "object 2: outside" in complaints(err)[0]


def test_many_objects_are_asked_in_parts(run, sam, photos, tmp_path, monkeypatch):
    from samfast.prompted_masks import prompted_objects

    monkeypatch.setattr(prompted_objects, "MAX_OBJECTS", 2)
    boxes = [{"box": [1, 1, 3 + n, 4]} for n in range(5)]
    write(tmp_path / "p.json", {"a.png": boxes})
    assert run("segment", photos / "a.png", "--prompts", "p.json", "--out", "out")[0] == 0
    assert [len(asked) for _, _, asked, _ in sam.asked] == [2, 2, 1]
    records = json.loads((tmp_path / "out" / "a.json").read_text())
    assert [record["input_box"][2] for record in records] == [3, 4, 5, 6, 7]
