"""Records: the original's keys and values, through JSON and back, bad files refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from samfast.errors import InputError, OutputError
from samfast.outputs import RECORD_KEYS, decode, encode, read_records, records_of, write_records
from samfast.outputs.records import bounding_box
from samfast.types import Masks
from tests import oracle


def answer(count: int = 3, each: int = 3, size: tuple[int, int] = (20, 30)) -> Masks:
    generator = torch.Generator().manual_seed(0)
    return Masks(
        torch.rand(count, each, *size, generator=generator) > 0.7,
        torch.rand(count, each, generator=generator),
        torch.zeros(count, each, 4, 4),
    )


def record(**changes: Any) -> dict[str, Any]:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:7] = True
    return {
        "segmentation": encode(mask),
        "area": 10,
        "bbox": [2, 1, 4, 1],
        "predicted_iou": 0.9,
        "point_coords": [[3.5, 2.0]],
        "stability_score": 0.95,
        "crop_box": [0, 0, 8, 6],
        **changes,
    }


def test_the_best_of_each_object() -> None:
    masks = answer()
    stability = torch.rand(3, 3)
    points = [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.5]], []]
    records = records_of(masks, stability, points)
    assert len(records) == 3
    for index, one in enumerate(records):
        which = int(masks.iou[index].argmax())
        mask = masks.masks[index, which].numpy()
        assert tuple(one) == RECORD_KEYS
        assert np.array_equal(decode(one["segmentation"]), mask)
        assert one["area"] == mask.sum()
        assert one["predicted_iou"] == pytest.approx(float(masks.iou[index, which]))
        assert one["stability_score"] == pytest.approx(float(stability[index, which]))
        assert one["point_coords"] == points[index]
        assert one["crop_box"] == [0, 0, 30, 20]


def test_all_masks_of_each_object() -> None:
    masks = answer()
    records = records_of(masks, np.full((3, 3), 0.5), best=False)
    assert [one["predicted_iou"] for one in records] == pytest.approx(masks.iou.flatten().tolist())
    for one, mask in zip(records, masks.masks.flatten(0, 1), strict=True):
        assert np.array_equal(decode(one["segmentation"]), mask.numpy())
        assert one["point_coords"] == []


def test_values_are_the_originals() -> None:
    """Against its box, area and RLE functions, the empty and the one-pixel mask among them."""
    amg = oracle.load().utils.amg
    masks = answer(4, 1).masks[:, 0]
    masks[1] = False
    masks[2] = False
    masks[2, 7, 9] = True
    records = records_of(
        Masks(masks[:, None], torch.ones(4, 1), torch.zeros(4, 1, 4, 4)), torch.ones(4, 1)
    )
    boxes = amg.batched_mask_to_box(masks)
    for one, mask, box, runs in zip(
        records, masks, boxes, amg.mask_to_rle_pytorch(masks), strict=True
    ):
        assert one["segmentation"] == amg.coco_encode_rle(runs)
        assert one["area"] == amg.area_from_rle(runs)
        assert one["bbox"] == amg.box_xyxy_to_xywh(box).tolist()
        assert bounding_box(mask.numpy()) == one["bbox"]


def test_no_objects() -> None:
    assert records_of(answer(0), np.zeros((0, 3))) == []


def test_bfloat16_scores() -> None:
    masks = answer()
    half = Masks(masks.masks, masks.iou.bfloat16(), masks.low_res)
    assert records_of(half, torch.ones(3, 3).bfloat16())[0]["stability_score"] == 1.0


def test_numbers_of_objects_that_differ() -> None:
    with pytest.raises(InputError, match=r"3 objects of 3 masks.*\(3, 1\)"):
        records_of(answer(), np.zeros((3, 1)))
    with pytest.raises(InputError, match="the points of 2 objects"):
        records_of(answer(), np.zeros((3, 3)), [[[1, 2]], [[3, 4]]])


# ------------------------------------------------------------------------------------ files


def test_json_round_trip(tmp_path: Path) -> None:
    records = records_of(answer(), torch.rand(3, 3), torch.rand(3, 1, 2))
    write_records(tmp_path / "a.json", records)
    assert read_records(tmp_path / "a.json") == records
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == records
    assert len(text.splitlines()) == 3 + 2  # one record a line


def test_no_records(tmp_path: Path) -> None:
    write_records(tmp_path / "a.json", [])
    assert json.loads((tmp_path / "a.json").read_text()) == []
    assert read_records(tmp_path / "a.json") == []


def test_any_segmentation_becomes_coco_rle_and_extra_keys_stay(tmp_path: Path) -> None:
    dense = decode(record()["segmentation"])
    runs = [13, 2, 4, 2, 4, 2, 4, 2, 4, 2, 9]
    written = [
        record(segmentation=dense),
        record(segmentation=torch.from_numpy(dense)),
        record(segmentation={"size": [6, 8], "counts": runs}),
        record(segmentation=coco.encode(np.asfortranarray(dense, dtype=np.uint8))),
        record(input_box=None, point_labels=[1], area=np.int64(10), bbox=np.array([2, 1, 4, 1])),
    ]
    write_records(tmp_path / "a.json", written)
    read = read_records(tmp_path / "a.json")
    assert [one["segmentation"] for one in read] == [record()["segmentation"]] * 5
    assert read[4]["point_labels"] == [1]
    assert read[4]["input_box"] is None
    assert {key: read[4][key] for key in RECORD_KEYS} == record()


BAD: list[tuple[Any, str]] = [
    (record(area=None), "area is None; it must be a number"),
    (record(area=True), "area is True"),
    (record(predicted_iou="high"), "predicted_iou"),
    (record(bbox=[1, 2, 3]), "bbox is .*4 numbers"),
    (record(bbox=[1, 2, 3, "4"]), "bbox"),
    (record(crop_box=3), "crop_box"),
    (record(point_coords=[1, 2]), "point_coords"),
    (record(point_coords=None), "point_coords"),
    (record(segmentation="RLE"), "segmentation"),
    (record(segmentation={"size": [6, 8], "counts": "3"}), "segmentation: .*do not fill"),
    (
        {key: value for key, value in record().items() if key not in ("area", "bbox")},
        "lacks area, bbox",
    ),
    ("mask", "a str, not a record"),
]


@pytest.mark.parametrize(("bad", "said"), BAD, ids=range(len(BAD)))
def test_a_bad_record_is_named_by_file_and_number(tmp_path: Path, bad: Any, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([record(), bad]))
    with pytest.raises(InputError, match=said) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}: record 1: ")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (record(predicted_iou=float("nan")), "JSON cannot hold it"),
        (record(stability_score=float("inf")), "JSON cannot hold it"),
        (record(note={1, 2}), "a set is neither"),
        (record(segmentation=np.zeros((6, 8))), "segmentation: a mask is"),
        ({"area": 3}, "lacks segmentation, bbox"),
        (record(bbox=[1, 2]), "bbox"),
    ],
)
def test_a_bad_record_is_not_written(tmp_path: Path, bad: Any, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(InputError, match=said) as caught:
        write_records(path, [record(), bad])
    assert str(caught.value).startswith("record 1: ")
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"[{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"{}", "a dict, not a list of records"),
        (b"3", "a int, not a list of records"),
        (b"[NaN]", "record 0: a float"),
    ],
)
def test_files_of_something_else(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_file_and_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_records(tmp_path / "gone.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path)
    with pytest.raises(OutputError, match="there is no folder"):
        write_records(tmp_path / "gone" / "a.json", [record()])


def test_texts_that_the_engine_made_are_written_unread(tmp_path):
    checked, unread = tmp_path / "checked.json", tmp_path / "unread.json"
    records = [record(), record()]
    write_records(checked, records)
    write_records(unread, records, check_texts=False)
    assert unread.read_bytes() == checked.read_bytes()
    damaged = {**record(), "segmentation": {"size": [4, 6], "counts": "1"}}
    with pytest.raises(InputError, match="record 1: segmentation"):
        write_records(checked, [record(), damaged])
    write_records(unread, [record(), damaged], check_texts=False)
    with pytest.raises(InputError, match="record 1: segmentation"):
        read_records(unread)
    # All else is checked in any case.
    for key, value in (("area", "large"), ("bbox", [1, 2]), ("predicted_iou", float("nan"))):
        with pytest.raises(InputError):
            write_records(unread, [{**record(), key: value}], check_texts=False)
