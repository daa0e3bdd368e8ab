"""annotations.json as several editors write it: whole, merged by photo, never written over."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samfast import coco_rle
from samfast.errors import DatasetError, InputError
from samfast.serve.annotations_file import AnnotationsFile, PhotoAnnotations, RevisionError

SIZE = (40, 60)


def block(x: int, y: int, width: int = 10, height: int = 8) -> dict[str, Any]:
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return coco_rle.encode(mask)


def new(key: str, mask: dict[str, Any] | None = None, category: str = "cup") -> dict[str, Any]:
    """A new annotation as the page sends it."""
    return {"key": key, "category": {"name": category}, "segmentation": mask or block(5, 5)}


def again(photo: PhotoAnnotations) -> list[dict[str, Any]]:
    """The annotations that a page sends back without a change."""
    return [dict(each, category={"id": each["category"]["id"]}) for each in photo.annotations]


def add(file: AnnotationsFile, name: str, *annotations: dict[str, Any]) -> PhotoAnnotations:
    photo = file.photo(name, SIZE)
    return file.save(name, SIZE, photo.revision, [*again(photo), *annotations])


def loaded(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "annotations.json"


def test_a_new_file_is_a_coco_instances_file(path):
    file = AnnotationsFile(path)
    assert not path.exists()
    add(file, "a.jpg", new("k1") | {"predicted_iou": 0.9, "name": "left", "points": [[7, 8]],
                                    "labels": [1]})  # fmt: skip
    add(file, "sub/b.jpg", new("k2", category="spoon"))
    data = loaded(path)
    assert data["images"] == [
        {"id": 1, "file_name": "a.jpg", "width": 60, "height": 40},
        {"id": 2, "file_name": "sub/b.jpg", "width": 60, "height": 40},
    ]
    assert [category["name"] for category in data["categories"]] == ["cup", "spoon"]
    first, second = data["annotations"]
    assert first == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "segmentation": block(5, 5),
        "area": 80,
        "bbox": [5, 5, 10, 8],
        "iscrowd": 0,
        "score": 0.9,
        "name": "left",
        "point_coords": [[7, 8]],
        "point_labels": [1],
        "uuid": "k1",
    }
    assert (second["id"], second["image_id"], second["category_id"]) == (2, 2, 2)
    assert file.counts() == {"a.jpg": 1, "sub/b.jpg": 1}
    # A fresh reader sees what the writer does.
    assert AnnotationsFile(path).photo("a.jpg", SIZE) == file.photo("a.jpg", SIZE)


def test_a_photo_that_was_changed_meanwhile_is_not_overwritten(path):
    one, other = AnnotationsFile(path), AnnotationsFile(path)
    before = other.photo("a.jpg", SIZE).revision
    mine = add(one, "a.jpg", new("k1"))
    with pytest.raises(RevisionError) as caught:
        other.save("a.jpg", SIZE, before, [new("k2")])
    assert caught.value.current == mine
    # Other photos are free.
    add(other, "b.jpg", new("k3"))
    assert AnnotationsFile(path).counts() == {"a.jpg": 1, "b.jpg": 1}


def test_an_answer_that_was_lost_can_be_asked_again(path):
    """The page merges by keys, so that the second try adds nothing twice."""
    file = AnnotationsFile(path)
    before = file.photo("a.jpg", SIZE).revision
    file.save("a.jpg", SIZE, before, [new("k1")])
    with pytest.raises(RevisionError) as caught:
        file.save("a.jpg", SIZE, before, [new("k1")])
    assert [each["key"] for each in caught.value.current.annotations] == ["k1"]


def test_what_the_page_does_not_show_stays(path):
    crowd = {"id": 4, "image_id": 7, "category_id": 1, "iscrowd": 1, "segmentation": block(0, 0)}
    small = {"id": 5, "image_id": 7, "category_id": 1, "segmentation": {"size": [4, 6],
             "counts": [24]}}  # fmt: skip
    orphan = {"id": 6, "image_id": 99, "category_id": 1}
    data = {
        "info": {"a": [1]},
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40, "extra": 1}],
        "annotations": [crowd, small, orphan],
        "categories": [{"id": 1, "name": "x", "keypoints": ["nose"]}],
        "my_section": {"b": 2},
    }
    path.write_text(json.dumps(data))
    file = AnnotationsFile(path)
    assert file.photo("a.jpg", SIZE).kept_aside == 2
    add(file, "a.jpg", new("k1", category="x"))
    saved = loaded(path)
    assert saved["annotations"][:2] == [crowd, small]
    assert orphan in saved["annotations"]
    assert saved["info"] == data["info"]
    assert saved["my_section"] == data["my_section"]
    assert saved["images"] == data["images"]
    assert saved["categories"] == data["categories"]
    assert len(saved["annotations"]) == 4


def test_polygons_stay_polygons_until_their_pixels_change(path):
    ring = [[10, 10, 20, 10, 20, 20, 10, 20]]
    entry = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": ring, "area": 100.0,
             "bbox": [10, 10, 10, 10], "iscrowd": 0, "note": "by hand"}  # fmt: skip
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
                "annotations": [entry],
                "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}],
            }
        )
    )
    file = AnnotationsFile(path)
    photo = file.photo("a.jpg", SIZE)
    (shown,) = again(photo)
    assert coco_rle.area_of(shown["segmentation"]) == 100
    photo = file.save("a.jpg", SIZE, photo.revision, [shown | {"category": {"id": 2}}])
    assert loaded(path)["annotations"] == [entry | {"category_id": 2}]
    (shown,) = again(photo)
    file.save("a.jpg", SIZE, photo.revision, [shown | {"segmentation": block(0, 0)}])
    (changed,) = loaded(path)["annotations"]
    assert changed["segmentation"] == block(0, 0)
    assert (changed["area"], changed["bbox"]) == (80, [0, 0, 10, 8])
    assert changed["note"] == "by hand"


def test_categories_are_made_renamed_and_coloured(path):
    file = AnnotationsFile(path)
    add(file, "a.jpg", new("k1"), new("k2"), new("k3", category="b") | {"category": {"name": "b",
        "color": "#102030"}})  # fmt: skip
    photo = file.photo("a.jpg", SIZE)
    assert [(each["name"], each["color"]) for each in photo.categories] == [
        ("cup", None),
        ("b", "#102030"),
    ]
    changes = [{"id": 1, "name": "mug", "color": "#ffffff"}]
    photo = file.save("a.jpg", SIZE, photo.revision, again(photo), changes)
    assert photo.categories[0] == {"id": 1, "name": "mug", "color": "#ffffff"}
    assert [each["category"]["name"] for each in photo.annotations] == ["mug", "mug", "b"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segmentation": coco_rle.encode(np.ones((4, 6), bool))}, "a mask of"),
        ({"segmentation": {"size": list(SIZE), "counts": "~~"}}, "damaged"),
        ({"segmentation": block(0, 0, 0, 0)}, "empty"),
        ({"category": {"id": 77}}, "category 77"),
    ],
)
def test_what_is_no_annotation_of_the_photo_is_refused(path, change, words):
    file = AnnotationsFile(path)
    add(file, "a.jpg", new("k1"))
    before = path.read_bytes()
    with pytest.raises(InputError, match=words):
        add(file, "a.jpg", new("k2") | change)
    with pytest.raises(InputError, match="two annotations"):
        add(file, "a.jpg", new("k2"), new("k2"))
    assert path.read_bytes() == before
    assert len(file.photo("a.jpg", SIZE).annotations) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"images": 5}',
        '{"annotations": [{"id": 1}]}',
        '{"annotations": [{"id": 1, "image_id": 1}, {"id": 1, "image_id": 1}]}',
        '{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]}',
        '{"categories": [{"name": "x"}]}',
    ],
)
def test_a_damaged_file_is_refused_and_never_written(path, text):
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"annotations\.json"):
        AnnotationsFile(path)
    path.unlink()
    file = AnnotationsFile(path)
    add(file, "a.jpg", new("k1"))
    path.write_text(text)
    with pytest.raises(DatasetError):
        file.save("a.jpg", SIZE, "0", [])
    assert path.read_text() == text


def test_threads_lose_nothing(path):
    file = AnnotationsFile(path)

    def label(name: str) -> None:
        for index in range(10):
            add(file, name, new(f"{name} {index}", block(index, index)))

    threads = [threading.Thread(target=label, args=(f"{n}.jpg",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert AnnotationsFile(path).counts() == {f"{n}.jpg": 10 for n in range(4)}
    ids = [each["id"] for each in loaded(path)["annotations"]]
    assert len(set(ids)) == len(ids) == 40


def label_for_ever(path: str, name: str) -> None:
    """Add and delete as fast as it goes."""
    file = AnnotationsFile(Path(path))
    for index in range(10**9):
        photo = file.photo(name, SIZE)
        rest = again(photo)[-20:]
        mask = block(index % 40, index % 30)
        file.save(name, SIZE, photo.revision, [*rest, new(f"{os.getpid()} {index}", mask)])


def test_processes_that_are_killed_midway_leave_the_file_whole(path):
    """Two programs write at once, and each is killed some times while it does."""
    context = multiprocessing.get_context("spawn")
    AnnotationsFile(path)
    for round in range(3):
        writers = [
            context.Process(target=label_for_ever, args=(str(path), f"{n}.jpg")) for n in range(2)
        ]
        for writer in writers:
            writer.start()
        end = time.monotonic() + 120
        seen: set[bytes] = set()
        while len(seen) < 8 and time.monotonic() < end:
            if path.exists():
                seen.add(path.read_bytes())
                json.loads(path.read_bytes())
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        assert len(seen) >= 8
        # Whole, and nobody holds its lock.
        add(AnnotationsFile(path), "mine.jpg", new(f"round {round}"))
    assert AnnotationsFile(path).counts()["mine.jpg"] == 3


def test_values_that_the_page_cannot_use_are_left_in_the_file(path):
    entry = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": block(5, 5),
             "score": float("nan"), "point_coords": [[1, 2]], "point_labels": [[-1]],
             "input_box": "none", "name": 5}  # fmt: skip
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
                "annotations": [entry],
                "categories": [{"id": 1, "name": "x", "color": "#FFAA00"}],
            }
        )
    )
    file = AnnotationsFile(path)
    photo = file.photo("a.jpg", SIZE)
    (shown,) = photo.annotations
    assert (shown["predicted_iou"], shown["points"], shown["box"]) == (None, [], None)
    assert photo.categories[0]["color"] == "#ffaa00"
    json.dumps(photo.as_json(), allow_nan=False)
    add(file, "a.jpg", new("k", block(20, 20), "x"))
    kept = loaded(path)["annotations"][0]
    del entry["name"], kept["score"], entry["score"]  # NaN is not equal to itself
    assert kept == entry


def test_annotations_that_a_program_copied_are_two(path):
    file = AnnotationsFile(path)
    add(file, "a.jpg", new("k1"))
    data = loaded(path)
    data["annotations"].append(data["annotations"][0] | {"id": 2})
    path.write_text(json.dumps(data))
    photo = add(file, "a.jpg", new("k2"))
    assert [each["key"] for each in photo.annotations] == ["k1", "id 2", "k2"]
    assert loaded(path)["annotations"][:2] == data["annotations"]
