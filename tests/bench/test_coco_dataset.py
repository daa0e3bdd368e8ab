from __future__ import annotations

import json

import numpy as np
import pytest

from samfast.bench.coco_dataset import open_dataset, to_mask
from samfast.errors import DatasetError
from tests.bench import coco

SIZE = (12, 17)
COCO = "For COCO val2017 download"
GENERATOR = np.random.default_rng(3)


@pytest.fixture
def folder(tmp_path):
    masks = [
        coco.rectangle(SIZE, 1, 2, 4, 5),
        coco.rectangle(SIZE, 5, 0, 7, 17),
        coco.rectangle((8, 9), 2, 2, 3, 3),
    ]
    return coco.write(
        tmp_path / "set",
        [{"height": 12, "width": 17, "source": "a"}, {"height": 8, "width": 9}],
        [coco.annotation(i + 1, 1 if i < 2 else 2, mask) for i, mask in enumerate(masks)],
    )


def refused(folder, *words, **places):
    with pytest.raises(DatasetError) as caught:
        open_dataset(**places) if places else open_dataset(folder)
    for word in words:
        assert str(word) in str(caught.value)
    assert "\n" not in str(caught.value)


def masks_of(data):
    return [annotation.mask() for image in data for annotation in image.annotations]


def test_reads_images_sizes_sources_boxes_and_masks(folder):
    data = open_dataset(folder)
    assert len(data) == 2
    assert [image.size for image in data] == [(12, 17), (8, 9)]
    assert [image.source for image in data] == ["a", None]
    assert [len(image.annotations) for image in data] == [2, 1]
    assert data.images[0].annotations[0].box == (2.0, 1.0, 5.0, 4.0)
    assert data.images[1].path == folder / "images" / "1.png"
    expected = [
        coco.rectangle(SIZE, 1, 2, 4, 5),
        coco.rectangle(SIZE, 5, 0, 7, 17),
        coco.rectangle((8, 9), 2, 2, 3, 3),
    ]
    for mask, truth in zip(masks_of(data), expected, strict=True):
        assert mask.dtype == bool
        assert np.array_equal(mask, truth)


def test_folder_and_file_apart(folder, tmp_path):
    file = tmp_path / "elsewhere.json"
    (folder / "annotations.json").rename(file)
    data = open_dataset(images=folder / "images", annotations=str(file))
    assert len(data) == 2


def test_one_image_is_a_set(tmp_path):
    mask = np.ones((1, 1), dtype=bool)
    root = coco.write(tmp_path / "one", [{"height": 1, "width": 1}], [coco.annotation(1, 1, mask)])
    assert masks_of(open_dataset(root))[0].tolist() == [[True]]


@pytest.mark.parametrize("form", [coco.compressed, coco.uncompressed])
@pytest.mark.parametrize(
    "mask",
    [
        GENERATOR.random(SIZE) > 0.5,
        GENERATOR.random((200, 130)) > 0.999,
        np.ones(SIZE, dtype=bool),
        np.zeros(SIZE, dtype=bool),
        coco.rectangle((500, 400), 100, 3, 350, 390),
    ],
    ids=["noise", "sparse", "full", "empty", "large"],
)
def test_run_lengths(form, mask):
    assert np.array_equal(to_mask(form(mask), mask.shape, "x"), mask)


def test_polygons():
    square, other = [2, 1, 7, 1, 7, 5, 2, 5], [10.0, 6, 14, 6, 14, 9, 10, 9]
    mask = to_mask([square, other], SIZE, "x")
    assert np.array_equal(
        mask, coco.rectangle(SIZE, 1, 2, 4, 5) | coco.rectangle(SIZE, 6, 10, 3, 4)
    )


def test_crowds_are_left_out(folder):
    coco.edit(folder, lambda content: content["annotations"][0].update(iscrowd=1))
    data = open_dataset(folder)
    assert [len(image.annotations) for image in data] == [1, 1]
    coco.edit(folder, lambda content: [each.update(iscrowd=1) for each in content["annotations"]])
    refused(folder, "annotations.json", "every annotation is a crowd", COCO)


def test_an_image_without_annotations_is_kept(folder):
    coco.edit(folder, lambda content: content["annotations"].pop())
    assert [len(image.annotations) for image in open_dataset(folder)] == [2, 0]


def test_boxes_absent_or_without_area_are_none(folder):
    def change(content):
        del content["annotations"][0]["bbox"]
        content["annotations"][1]["bbox"] = [3, 3, 0, 4]

    assert [each.box for each in open_dataset(coco.edit(folder, change)).images[0].annotations] == [
        None,
        None,
    ]


def test_a_missing_set_says_what_to_download_and_how_to_lay_it_out(tmp_path):
    words = (
        COCO,
        "http://images.cocodataset.org/zips/val2017.zip",
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        "--images val2017 --annotations annotations/instances_val2017.json",
        "images/ and annotations.json",
    )
    refused(tmp_path / "absent", "no such folder", *words)
    refused(
        None,
        "val2017: there is no such folder",
        *words,
        images=tmp_path / "val2017",
        annotations="x.json",
    )


def test_annotations_without_images(folder):
    for picture in (folder / "images").iterdir():
        picture.unlink()
    refused(folder, folder / "images", "2 of 2 images", "0.png, 1.png", "copy them there", COCO)


def test_images_without_annotations(folder):
    coco.edit(folder, lambda content: content.update(annotations=[]))
    refused(folder, "annotations.json", "no annotations", "no mask to score", COCO)
    coco.edit(folder, lambda content: content.pop("annotations"))
    refused(folder, "annotations.json", "no list of objects 'annotations'")
    (folder / "annotations.json").unlink()
    refused(folder, "annotations.json", "no such annotation file", COCO)


def test_categories(folder):
    def change(content):
        content["annotations"][0]["category_id"] = 7
        content["annotations"][1]["category_id"] = 8
        del content["annotations"][2]["category_id"]
        content["categories"] = [{"id": 7, "name": "cat"}, {"id": 8, "name": ""}]

    data = open_dataset(coco.edit(folder, change))
    objects = [each for image in data for each in image.annotations]
    assert [each.category for each in objects] == ["cat", "8", None]
    coco.edit(folder, lambda content: content.pop("categories"))
    again = open_dataset(folder)
    assert again.images[0].annotations[0].category == "7"
    assert again.digest != data.digest
    assert again.digest == open_dataset(folder).digest
    refused(
        coco.edit(folder, lambda content: content.update(categories=[3])),
        "no list of objects 'categories'",
    )


def test_missing_places_say_what_is_expected(folder, tmp_path):
    refused(tmp_path / "absent", "absent", "no such folder", "images/ and annotations.json")
    refused(folder / "annotations.json", "no such folder", "images/ and annotations.json")
    refused(None, "no data set", images=folder / "images", annotations=None)
    refused(
        None,
        "absent.json",
        "--annotations",
        images=folder / "images",
        annotations=tmp_path / "absent.json",
    )
    refused(
        None,
        "not both",
        path=folder,
        images=folder / "images",
        annotations=folder / "annotations.json",
    )
    (folder / "annotations.json").rename(folder / "kept.json")
    refused(folder, "annotations.json", "no such annotation file", "images/ and annotations.json")
    (folder / "kept.json").rename(folder / "annotations.json")
    (folder / "images").rename(folder / "pictures")
    refused(folder, "images", "no such folder of images", "images/ and annotations.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("\x00\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "is a list"),
        ("{}", "no list of objects 'images'"),
        ('{"images": [3]}', "no list of objects 'images'"),
        ('{"images": []}', "'images' is empty"),
        (
            '{"images": [{"id": 1, "file_name": "0.png", "height": 2, "width": 2}]}',
            "no list of objects 'annotations'",
        ),
        (
            '{"images": [{"id": 1, "file_name": "0.png", "height": 2, "width": 2}], "annotations": '
            "[]}",
            "its images have no annotations",
        ),
        ('{"images": [{"file_name": "0.png"}], "annotations": []}', "images[0] lacks 'id'"),
        ('{"images": [{"id": [], "file_name": "0.png"}], "annotations": []}', "images[0]"),
        ('{"images": [{"id": 1, "file_name": "0.png"}], "annotations": []}', "'height'"),
        (
            '{"images": [{"id": 1, "file_name": "0.png", "height": 2.5, "width": true}], '
            '"annotations": []}',
            "'height'",
        ),
    ],
)
def test_files_that_are_not_coco(folder, text, words):
    (folder / "annotations.json").write_text(text, encoding="latin-1")
    refused(folder, folder / "annotations.json", words)


def test_images_that_do_not_fit(folder):
    (folder / "images" / "1.png").unlink()
    refused(folder, "1 of 2 images", "1.png")
    coco.edit(folder, lambda content: content["images"][1].update(id=1))
    refused(folder, "two images have the id 1")


def change_first(**values):
    def change(content):
        content["annotations"][0].update(values)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_first(image_id=99), "of image 99"),
        (change_first(image_id=[1]), "of image [1]"),
        (lambda content: content["annotations"][0].pop("segmentation"), "no 'segmentation'"),
        (change_first(segmentation={"size": [17, 12], "counts": [204]}), "[17, 12]"),
        (change_first(segmentation={"counts": [204]}), "size is None"),
        (change_first(category_id=[1]), "category_id [1]"),
        (change_first(bbox=[1, 2, 3]), "bbox"),
        (change_first(bbox=[1, 2, 3, "4"]), "bbox"),
        (change_first(bbox=[1, 2, 3, float("nan")]), "finite"),
    ],
)
def test_annotations_that_do_not_fit(folder, change, words):
    refused(coco.edit(folder, change), "annotations[0]", words)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        3,
        {"size": [12, 17]},
        {"size": [12, 17], "counts": [100, 103]},
        {"size": [12, 17], "counts": [-1, 205]},
        {"size": [12, 17], "counts": [1.5, 202.5]},
        {"size": [12, 17], "counts": "T"},
        {"size": [12, 17], "counts": "ab cd"},
        {"size": [12, 17], "counts": "é"},
        {"size": [12, 17], "counts": "0" * 50 + "0g6Z30000"},
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, float("inf")]],
        [3],
    ],
    ids=repr,
)
def test_damaged_masks(segmentation):
    with pytest.raises(DatasetError, match="the one: ") as caught:
        to_mask(segmentation, SIZE, "the one")
    assert "\n" not in str(caught.value)


def test_a_file_from_pycocotools_reads_the_same(tmp_path):
    """The reader of this format that everybody uses agrees on every mask."""
    from pycocotools.coco import COCO

    generator = np.random.default_rng(0)
    masks = [generator.random((40, 30)) > 0.7 for _ in range(5)]
    root = coco.write(
        tmp_path,
        [{"height": 40, "width": 30}],
        [coco.annotation(i + 1, 1, mask) for i, mask in enumerate(masks)],
    )
    theirs = COCO()
    theirs.dataset = json.loads((root / "annotations.json").read_text())
    theirs.createIndex()
    ours = masks_of(open_dataset(root))
    for i, mask in enumerate(ours):
        assert np.array_equal(mask, theirs.annToMask(theirs.anns[i + 1]))
