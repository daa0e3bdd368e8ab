"""`samfast run`: its files, what it resumes and refuses, its messages and exit codes."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import shutil
import sys
import threading
from itertools import islice

import numpy as np
import pyarrow.parquet as pq
import pytest

import samfast
from samfast import coco_rle
from samfast.cli import run_command, run_devices
from samfast.cli.main import main
from samfast.cluster import read_ahead as module
from samfast.cluster import run_shards, shard_files
from samfast.cluster.answers import ShardRequest, answer_shards
from samfast.cluster.read_ahead import read_ahead
from samfast.cluster.shards import shards_left
from samfast.cluster.sources import open_source
from samfast.cluster.work import EmbeddingWork, Everything, PromptedWork, Work
from samfast.prompted_masks.prompted_objects import PromptedObject
from samfast.serve.messages import ObjectPrompt
from tests.cluster.conftest import FREE, files
from tests.serve.running import picture, started, tiny_engine

COLUMNS = [
    "image",
    "image_width",
    "image_height",
    "object",
    "segmentation_size",
    "segmentation_counts",
    "bbox",
    "area",
    "predicted_iou",
    "stability_score",
]

OPTIONS = {name: int(value) for name, value in (each.split("=") for each in FREE)}


def rows(out, folder="masks"):
    return pq.read_table(out / folder).to_pylist()


def test_masks_are_those_of_segment_each_in_the_order_of_the_source(run, photos, tmp_path):
    out = tmp_path / "out"
    code, stdout, err = run(photos, out)
    assert (code, stdout) == (0, "")
    assert "7 images in 4 shards" in err
    assert "7 done, 0 failed" in err
    sam = tiny_engine()
    table = rows(out)
    assert list(table[0]) == [*COLUMNS, "model", "recipe", "versions"]
    assert table[0]["versions"].startswith(f"samfast {samfast.__version__}, torch ")
    expected = []
    for entry in open_source(str(photos)).entries:
        for number, record in enumerate(sam.segment([photos / entry.key], **OPTIONS)[0]):
            expected.append((entry.key, number, record))
    assert len(expected) > 7
    for row, (key, number, record) in zip(table, expected, strict=True):
        assert (row["image"], row["object"]) == (key, number)
        size = [row["image_height"], row["image_width"]]
        assert row["segmentation_size"] == record["segmentation"]["size"] == size
        assert row["segmentation_counts"] == record["segmentation"]["counts"]
        for name in ("bbox", "area", "predicted_iou", "stability_score"):
            assert row[name] == record[name]
    names = sorted(path.name for path in (out / "masks").iterdir())
    assert names == [f"{number:08d}.parquet" for number in range(4)]
    assert rows(out, "failures.parquet") == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_shard_is_the_same_whatever_was_done_before_it(run, photos, tmp_path, batch_size):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--batch-size", batch_size)
    assert run(photos, whole, *options)[0] == 0
    shutil.copytree(whole, parts)
    for number in (0, 2):
        (parts / "masks" / f"{number:08d}.parquet").unlink()
    code, _, err = run(photos, parts, *options)
    assert code == 0
    assert "2 shards that the manifest lists are missing or damaged" in err
    assert "4 images in 2 shards; 3 images skipped" in err
    assert files(parts) == files(whole)


def test_what_was_loaded_before_a_run_is_no_garbage_during_it(run, photos, tmp_path, monkeypatch):
    during: list[int] = []
    write = shard_files.write_shard

    def noted(*arguments):
        during.append(gc.get_freeze_count())
        return write(*arguments)

    monkeypatch.setattr(run_shards, "write_shard", noted)
    assert run(photos, tmp_path / "out")[0] == 0
    assert len(during) == 4 and min(during) > 10_000
    assert gc.get_freeze_count() < min(during)


def test_files_are_hashed_for_embeddings_alone(run, photos, tmp_path, monkeypatch):
    hashed: list[bool] = []
    read = module.read_entry

    def noted(reader, entry, *, with_id):
        hashed.append(with_id)
        return read(reader, entry, with_id=with_id)

    monkeypatch.setattr(module, "read_entry", noted)
    assert run(photos, tmp_path / "masks")[0] == 0
    assert hashed == [False] * 7
    hashed.clear()
    store = tmp_path / "embeddings"
    assert run(photos, store, "--embeddings", everything=False)[0] == 0
    assert hashed == [True] * 7


def test_a_finished_run_says_so_without_the_model(run, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(photos, out)
    before = files(out)
    monkeypatch.setattr(run_devices, "load_model", None)
    code, _, err = run(photos, out)
    assert code == 0
    assert "nothing is left: 7 images done before, 0 failed" in err
    assert files(out) == before


def test_another_run_is_refused(run, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(photos, out)
    before = files(out)

    def refused(message, *more, source=photos, everything=True):
        code, _, err = run(source, out, *more, everything=everything)
        assert (code, files(out)) == (2, before)
        assert message in err
        assert "choose another --out" in err

    refused("work was everything and is embeddings", "--embeddings", everything=False)
    refused("option pred_iou_thresh was 0", everything=False)
    refused("shard_size was 2 and is 3", "--shard-size", 3)
    (photos / "0.png").rename(photos / "00.png")
    refused("the source changed")
    (photos / "00.png").rename(photos / "0.png")
    monkeypatch.setattr("samfast.cluster.run_identity.version", lambda name: "9")
    refused("torch 9")
    monkeypatch.undo()
    other = tiny_engine()
    with_other_decoder = other.model.mask_decoder.iou_token.weight
    with_other_decoder.data += 1
    monkeypatch.setattr(run_devices, "load_model", lambda args: other)
    argv = ["run", str(photos), "--out", str(out), "--checkpoint", "x.pth", "--everything", *FREE]
    assert main(argv) == 2


def test_the_size_of_shards_is_that_of_the_run_which_goes_on(run, photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out)
    before = files(out)
    (out / "masks" / "00000001.parquet").unlink()
    (out / "manifest.json").write_text("damaged")
    assert main(["run", str(photos), "--out", str(out), "--everything", *FREE]) == 0
    assert files(out) == before


def test_bad_images_are_listed_and_the_others_done(run, photos, tmp_path):
    out = tmp_path / "out"
    (photos / "1.png").write_bytes(picture(1)[:90])
    (photos / "empty.png").write_bytes(b"")
    code, _, err = run(photos, out)
    assert code == 1
    assert "7 done, 2 failed" in err
    assert "1.png: " in err
    failures = rows(out, "failures.parquet")
    assert [(each["image"], each["error"]) for each in failures] == [
        ("1.png", "ImageError"),
        ("empty.png", "ImageError"),
    ]
    assert failures[1]["reason"] == "is empty (0 bytes)"
    assert {row["image"] for row in rows(out)} == {
        *("0.png", "2.png", "4.png", "6.png"),
        *("more/1.png", "more/3.png", "more/5.png"),
    }
    code, _, err = run(photos, out)
    assert code == 1
    assert "nothing is left: 9 images done before, 2 failed" in err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names of any bytes")
def test_names_that_are_no_text(run, photos, tmp_path):
    (photos / os.fsdecode(b"\xff\n.png")).write_bytes(picture(3))
    (photos / "7\n\u20ac.png").write_bytes(b"no image")
    out = tmp_path / "out"
    code, _, err = run(photos, out)
    assert code == 1
    assert "7\\n\u20ac.png: not an image" in err
    assert "\\xff\n.png" in {row["image"] for row in rows(out)}
    assert rows(out, "failures.parquet")[0]["image"] == "7\n\u20ac.png"
    for to in ("coco", "geojson"):
        assert main(["convert", str(out), "--to", to]) == 0
    assert "nothing is left: 9 images" in run(photos, out)[2]


def test_an_image_that_the_model_fails_on_is_bad_and_no_other(run, photos, tmp_path, monkeypatch):
    import torch

    from samfast.errors import NumericsError
    from tests.cluster import conftest

    class Failing:
        """The tiny engine, which fails on two images wherever these are."""

        def __init__(self):
            self._sam = tiny_engine()

        def __getattr__(self, name):
            return getattr(self._sam, name)

        def segment_each(self, images, **options):
            for number, image in enumerate(images):
                if image.name == "2.png":
                    raise NumericsError(f"image {number}, object 7: the answer holds NaN")
                if image.name == "more/1.png":
                    raise torch.OutOfMemoryError("tried to allocate 7.03 GiB")
                yield from self._sam.segment_each([image], **options)

    monkeypatch.setattr(conftest, "tiny_engine", lambda batch_size: Failing())
    out = tmp_path / "out"
    code, _, err = run(photos, out)
    assert code == 1
    assert "5 done, 2 failed" in err
    failures = [(each["image"], each["reason"]) for each in rows(out, "failures.parquet")]
    assert failures[0] == ("2.png", "object 7: the answer holds NaN")
    assert failures[1][0] == "more/1.png"
    assert failures[1][1].startswith("the device's memory ran out")
    assert {row["image"] for row in rows(out)} == {
        *("0.png", "4.png", "6.png", "more/3.png", "more/5.png")
    }


def test_failures_are_tried_again_when_asked(run, photos, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    good = (photos / "2.png").read_bytes()
    run(photos, whole)
    (photos / "2.png").write_bytes(bytes(len(good)))  # of the same size
    assert run(photos, out)[0] == 1
    (photos / "2.png").write_bytes(good)
    assert run(photos, out)[0] == 1
    code, _, err = run(photos, out, "--retry-failures")
    assert code == 0
    assert "2 images in 1 shard; 5 images skipped" in err
    assert files(out) == files(whole)


def test_too_many_failures_end_the_run_with_whole_shards(run, photos, tmp_path):
    out = tmp_path / "out"
    for name in ("0.png", "4.png", "6.png"):
        (photos / name).write_bytes(b"no image")
    code, _, err = run(photos, out, "--max-failures", 1)
    assert code == 1
    assert "more than 1 images failed; what is written is whole" in err
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["finished"], len(manifest["shards"])) == (False, 2)
    assert len(list((out / "masks").iterdir())) == 2  # and the shard after it was not begun
    assert len(rows(out, "failures.parquet")) == 3
    assert run(photos, out, "--max-failures", 1)[0] == 1
    code, _, err = run(photos, out, "--max-failures", 3)
    assert "2 shards; 4 images skipped" in err
    whole = tmp_path / "whole"
    run(photos, whole)
    assert files(out) == files(whole)


def test_a_shard_is_listed_while_the_next_is_answered(run, photos, tmp_path, monkeypatch):
    """So a run that is killed loses no more than the shard that it is at."""
    listed, add = threading.Event(), run_shards.Recorder.add

    def noted(recorder, record, failures):
        add(recorder, record, failures)
        listed.set()

    def second_waits(sam, requests):
        for number, answers in enumerate(answer_shards(sam, requests)):
            assert number != 1 or listed.wait(30)
            yield answers

    monkeypatch.setattr(run_shards.Recorder, "add", noted)
    monkeypatch.setattr(run_shards, "answer_shards", second_waits)
    assert run(photos, tmp_path / "out")[0] == 0


def test_prompts_of_a_coco_file(run, photos, tmp_path):
    boxes = {"2.png": [[5, 5, 40, 30], [10, 20, 30, 30]], "more/3.png": [[0, 0, 50, 50]]}
    images = [
        {"id": 70 + i, "file_name": n, "width": 90, "height": 60} for i, n in enumerate(boxes)
    ]
    annotations = [
        {"id": 500 + 10 * i + k, "image_id": 70 + i, "category_id": 3, "bbox": box}
        for i, name in enumerate(boxes)
        for k, box in enumerate(boxes[name])
    ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "leaf"}],
    }
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(content))
    out = tmp_path / "out"
    code, _, err = run(photos, out, "--prompts", prompts, everything=False)
    assert code == 0
    assert f"5 images skipped, which {prompts} does not name" in err
    table = rows(out)
    assert [(row["image"], row["object"], row["annotation_id"]) for row in table] == [
        ("2.png", 0, 500),
        ("2.png", 1, 501),
        ("more/3.png", 0, 510),
    ]
    assert {row["category_id"] for row in table} == {3}
    sam = tiny_engine()
    corners = [[[x, y, x + w, y + h] for x, y, w, h in each] for each in boxes.values()]
    asked = [samfast.Prompts(boxes=each) for each in corners]
    answers = sam.predict_each(
        [photos / name for name in boxes], asked, multimask=False, output_mode="coco_rle"
    )
    expected = [record for records in answers for record in records]
    for row, record in zip(table, expected, strict=True):
        assert row["segmentation_counts"] == record["segmentation"]["counts"]
        assert row["predicted_iou"] == record["predicted_iou"]
    again = run(photos, out, "--prompts", prompts, everything=False)
    assert "nothing is left: 2 images" in again[2]
    annotations[0]["bbox"] = [6, 5, 40, 30]
    prompts.write_text(json.dumps(content))
    code, _, err = run(photos, out, "--prompts", prompts, everything=False)
    assert code == 2
    assert "option prompts" in err


@pytest.mark.parametrize("work", ["prompts", "everything", "embeddings"])
def test_each_shard_begins_a_batch(photos, tmp_path, monkeypatch, work):
    source = open_source(str(photos))
    sam = tiny_engine(batch_size=3)
    batches, encode = [], sam.encode

    def counted(batch):
        batches.append(len(batch))
        return encode(batch)

    monkeypatch.setattr(sam, "encode", counted)
    objects = {entry.key: (PromptedObject(box=(5, 5, 40, 30)),) for entry in source.entries}
    works: dict[str, Work] = {
        "prompts": PromptedWork(objects),
        "everything": Everything({"points_per_side": 2}),
        "embeddings": EmbeddingWork(str(tmp_path / "store")),
    }
    shards = list(shards_left(source.entries, 4, {}))
    with read_ahead(source.reader, source.entries, 2) as images:
        requests = (
            ShardRequest(shard, works[work], islice(images, len(shard.entries))) for shard in shards
        )
        answers = list(answer_shards(sam, requests))
    assert [[image.key for image in each.images] for each in answers] == [
        [entry.key for entry in shard.entries] for shard in shards
    ]
    # A CPU encodes the crops of everything one by one.
    assert batches == ([1] * 7 if work == "everything" else [3, 1, 3])
    for shard, each in zip(shards, answers, strict=True):
        with read_ahead(source.reader, shard.entries, 2) as images:
            request = ShardRequest(shard, works[work].of(shard), images)
            assert list(answer_shards(sam, iter([request]))) == [each]


def test_points_of_a_coco_file_are_keypoints_or_the_depth_of_the_mask(run, photos, tmp_path):
    dense = np.zeros((60, 60), bool)
    dense[10:31, 20:41] = True
    mask = coco_rle.encode(dense)
    annotations = [
        {
            "id": 1,
            "image_id": 1,
            "bbox": [5, 5, 20, 20],
            "keypoints": [7, 8, 2, 0, 0, 0, 9, 9, 1],
            "segmentation": mask,
        },
        {"id": 2, "image_id": 1, "bbox": [20, 10, 21, 21], "segmentation": mask},
    ]
    images = [{"id": 1, "file_name": "0.png", "width": 60, "height": 60}]
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"images": images, "annotations": annotations}))
    sam = tiny_engine()

    def best(**prompts):
        answer = sam.predict_each(
            [photos / "0.png"], [samfast.Prompts(**prompts)], output_mode="coco_rle"
        )
        return max(next(answer), key=lambda record: record["predicted_iou"])

    for kind in ("point", "both"):
        out = tmp_path / kind
        code, _, _ = run(photos, out, "--prompts", prompts, "--prompt-with", kind, everything=False)
        assert code == 0
        assert [row["annotation_id"] for row in rows(out)] == [1, 2]
    assert rows(tmp_path / "both") != rows(tmp_path / "point")
    expected = best(points=[[[30, 20]]], labels=[[1]])
    assert rows(tmp_path / "point")[1]["segmentation_counts"] == expected["segmentation"]["counts"]


def test_embeddings_are_a_store_of_the_server(run, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    code, _, _ = run(photos, out, "--embeddings", everything=False)
    assert code == 0
    table = rows(out, "embedded")
    assert [row["image"] for row in table] == [e.key for e in open_source(str(photos)).entries]
    for row in table:
        image_id = hashlib.sha256((photos / row["image"]).read_bytes()).hexdigest()
        assert row["image_id"] == image_id
        stored = samfast.load_embeddings(out / "embeddings" / row["embedding"])
        expected = tiny_engine().embed([photos / row["image"]])
        assert (stored.features == expected.features).all()

    async def click():
        sam = tiny_engine()
        async with started(sam, store=str(out / "embeddings")) as service:
            monkeypatch.setattr(sam, "embed", None)  # it is not needed
            click = ObjectPrompt(points=((20, 20),), labels=(1,))
            return await service.predict(table[2]["image_id"], [click])

    assert len(asyncio.run(click())) == 1
    before = files(out)
    (out / "embedded" / "00000001.parquet").unlink()
    assert run(photos, out, "--embeddings", everything=False)[0] == 0
    assert files(out) == before


def test_events_are_lines_of_json(run, photos, tmp_path):
    (photos / "1.png").write_bytes(b"no image")
    code, stdout, _ = run(photos, tmp_path / "out", "--json")
    assert code == 1
    events = [json.loads(line) for line in stdout.splitlines()]
    assert events[0]["event"] == "start"
    assert (events[0]["entries"], events[0]["left"], events[0]["shards"]) == (8, 8, 4)
    shards = [each for each in events if each["event"] == "shard"]
    assert [each["number"] for each in shards] == [0, 1, 2, 3]
    assert sum(each["rows"] for each in shards) == len(rows(tmp_path / "out"))
    (failure,) = [each for each in events if each["event"] == "failure"]
    assert failure["image"] == "1.png"
    end = events[-1]
    assert (end["event"], end["finished"], end["images"], end["failed"]) == ("end", True, 7, 1)
    file = tmp_path / "events.jsonl"
    run(photos, tmp_path / "out", "--json", file)
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["start", "end"]


def test_progress_says_rate_failures_and_time_left(run, photos, tmp_path, monkeypatch):
    from samfast.cli import run_progress

    monkeypatch.setattr(run_progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(run_progress, "EVENT_SECONDS", 0.0)
    (photos / "1.png").write_bytes(b"no image")
    _, stdout, err = run(photos, tmp_path / "out", "--json")
    assert "samfast: 4 of 8 images, 1 failed, " in err
    assert " images/s, " in err
    assert " s left" in err
    progress = [
        each for each in map(json.loads, stdout.splitlines()) if each["event"] == "progress"
    ]
    assert [each["images"] for each in progress] == list(range(1, 9))
    assert progress[3]["total"] == 8
    assert progress[3]["eta_seconds"] > 0
    assert progress[3]["images_per_second"] > 0
    assert progress[-1]["failed"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--everything", "--embeddings"], "exclude each other"),
        (["--everything", "grid=3"], "--everything grid: there are points_per_side"),
        (["--everything", "points_per_side=x"], "not a whole number"),
        (["--embeddings", "--points-per-side", 3], "--points-per-side is for segmenting"),
        (["--all-masks"], "--all-masks is for --prompts"),
        (["--prompt-with", "both"], "--prompt-with is for --prompts"),
        (["--prompts", "none.json"], "cannot be read"),
        (["--points-per-side", 2, "--crop-n-layers", 40], "memory"),
        (["--shard-size", 0], "whole number of at least 1"),
    ],
)
def test_wrong_usage(run, photos, tmp_path, more, message):
    code, _, err = run(photos, tmp_path / "out", *more, everything=False)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_everything_may_stand_before_the_source(photos, tmp_path, run):
    out = tmp_path / "out"
    assert main(["run", "--out", str(out), "--everything", *FREE, str(photos)]) == 0
    assert len(rows(out)) > 7
    assert main(["run", "--out", str(out)]) == 2


def test_only_one_run_writes_at_a_time(run, photos, tmp_path):
    from filelock import FileLock

    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / run_command.LOCK):
        code, _, err = run(photos, out)
    assert code == 2
    assert "another samfast run writes there" in err


def test_results_at_a_url(run, photos, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.rm("/results", recursive=True) if memory.exists("/results") else None
    assert run(photos, "memory://results")[0] == 0
    assert run(photos, tmp_path / "out")[0] == 0
    here = {name: data for name, data in files(tmp_path / "out").items() if "masks/" in name}
    assert here == {
        name.removeprefix("/results/"): memory.cat_file(name)
        for name in memory.find("/results/masks")
    }
    memory.rm("/results/masks/00000002.parquet")
    code, _, err = run(photos, "memory://results")
    assert code == 0
    assert "2 images in 1 shard; 5 images skipped" in err


def test_without_pyarrow_it_says_what_to_install(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(run_command, "find_spec", lambda name: None)
    code, _, err = run(photos, tmp_path / "out")
    assert code == 2
    assert "pip install 'samfast[cluster]'" in err
