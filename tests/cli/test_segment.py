"""`samfast segment` with a stand-in engine: files, messages, exit codes."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from samfast.cli import segment_command
from samfast.cli.common_options import load_model
from samfast.cli.segment_formats import FORMATS
from samfast.cli.segment_results import ResultWriter
from samfast.errors import DeviceMemoryError, OutputError
from samfast.recipes import RECIPES
from tests.cli.stderr_lines import complaints
from tests.model.tiny import fast, random_sam

KEYS = {
    "segmentation",
    "area",
    "bbox",
    "predicted_iou",
    "point_coords",
    "stability_score",
    "crop_box",
}


def records(path):
    return json.loads(path.read_text())


def test_no_prompt_means_everything(run, sam, photos, tmp_path):
    code, out, err = run("segment", photos / "a.png", "--out", "out")
    assert (code, complaints(err)) == (0, [])
    assert out.splitlines() == [os.path.join("out", "a.json")]
    segmented = records(tmp_path / "out" / "a.json")
    assert len(segmented) == 2
    assert set(segmented[0]) == KEYS
    assert coco.decode(segmented[0]["segmentation"]).sum() == segmented[0]["area"] == 12 * 16
    assert sam.options == [{}]


def test_automatic_options_reach_the_engine_only_when_given(run, sam, photos):
    code, _, _ = run(
        "segment",
        photos / "a.png",
        "--points-per-side",
        8,
        "--pred-iou-thresh",
        0.5,
        "--crop-n-layers",
        0,
    )
    assert code == 0
    assert sam.options == [{"points_per_side": 8, "pred_iou_thresh": 0.5, "crop_n_layers": 0}]


def test_default_folder(run, sam, photos, tmp_path):
    assert run("segment", photos)[0] == 0
    assert sorted(p.name for p in (tmp_path / segment_command.OUT).iterdir()) == [
        "a.json",
        "b.json",
        "c.json",
    ]


def test_one_click_keeps_the_best_of_three(run, sam, photos, tmp_path):
    code, _, err = run("segment", photos / "a.png", "--point", "10,8", "--out", "out")
    assert (code, complaints(err)) == (0, [])
    assert sam.asked == [([[[10.0, 8.0]]], [[1]], None, True)]
    (record,) = records(tmp_path / "out" / "a.json")
    assert set(record) == KEYS | {"point_labels", "input_box"}
    assert record["predicted_iou"] == pytest.approx(0.9)
    assert record["area"] == 5 * 4  # the fake's second mask is one row shorter
    assert record["bbox"] == [8, 6, 4, 3]
    assert record["point_coords"] == [[10.0, 8.0]]
    assert record["point_labels"] == [1]
    assert record["input_box"] is None
    assert record["crop_box"] == [0, 0, 24, 16]
    assert 0 < record["stability_score"] <= 1
    assert coco.decode(record["segmentation"])[6:10, 8:13].all()


def test_all_masks_are_three_best_first(run, sam, photos, tmp_path):
    assert (
        run("segment", photos / "a.png", "--box", "2,2,12,12", "--all-masks", "--out", "out")[0]
        == 0
    )
    segmented = records(tmp_path / "out" / "a.json")
    assert [round(r["predicted_iou"], 1) for r in segmented] == [0.9, 0.7, 0.5]
    assert [r["area"] for r in segmented] == [90, 80, 100]


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--point", "5,6", "--point", "7,8,0"], [([[[5, 6], [7, 8]]], [[1, 0]], None, False)]),
        (["--box", "1,2,9,8"], [(None, None, [[1, 2, 9, 8]], False)]),
        (["--box", "1,2,9,8", "--point", "5,6"], [([[[5, 6]]], [[1]], [[1, 2, 9, 8]], False)]),
        (
            ["--box", "1,2,9,8", "--box", "0,0,4,4", "--point", "5,6"],
            [
                ([[[5, 6]]], [[1]], None, True),
                (None, None, [[1, 2, 9, 8], [0, 0, 4, 4]], False),
            ],
        ),
    ],
)
def test_how_prompts_combine(run, sam, photos, tmp_path, options, asked):
    code, _, err = run("segment", photos / "a.png", *options, "--out", "out")
    assert (code, complaints(err)) == (0, [])
    assert sam.asked == asked
    objects = sum(len(points or boxes) for points, _, boxes, _ in asked)
    assert len(records(tmp_path / "out" / "a.json")) == objects


def test_prompts_are_asked_of_every_image_in_batches(run, sam, photos, tmp_path):
    code, out, _ = run("segment", photos, "--point", "5,5", "--batch-size", 2, "--out", "out")
    assert code == 0
    assert sam.embedded == [2, 1]
    assert len(out.splitlines()) == 3


def test_one_bad_file_among_good_ones(run, sam, photos, tmp_path):
    (photos / "b.png").write_bytes(b"no picture at all")
    code, out, err = run("segment", photos, "--batch-size", 3, "--out", "out")
    assert code == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "c.json"]
    (line,) = complaints(err)
    assert line.startswith(f"samfast: {photos / 'b.png'}: ")
    assert line.count("b.png") == 1
    assert len(out.splitlines()) == 2


def test_a_prompt_outside_one_image_spares_its_neighbours(run, sam, photos, tmp_path):
    Image.new("RGB", (8, 8)).save(photos / "b.png")
    code, _, err = run("segment", photos, "--point", "18,10", "--batch-size", 3, "--out", "out")
    assert code == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "c.json"]
    assert complaints(err) == [
        f"samfast: {photos / 'b.png'}: object 0: outside the image of 8 x 8 px; move it inside"
    ]


def test_missing_file_empty_folder_and_empty_glob(run, sam, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = run("segment", "gone.jpg", "empty", "x*.png", photos / "a.png", "--out", "out")
    assert code == 1
    lines = complaints(err)
    assert [line.split(": ")[1] for line in lines] == ["gone.jpg", "empty", "x*.png"]
    assert (tmp_path / "out" / "a.json").exists()


def test_nothing_to_do_does_not_load_the_model(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(segment_command, "load_model", lambda args: pytest.fail("loaded"))
    assert run("segment", "gone.jpg")[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_glob_and_folder_name_a_file_once(run, sam, photos, tmp_path):
    code, out, err = run("segment", str(photos / "*.png"), photos, photos / "a.png", "--out", "out")
    assert (code, complaints(err)) == (0, [])
    assert len(out.splitlines()) == 3


def test_same_stems_get_numbers_and_a_message(run, sam, photos, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "a.png", tmp_path / "more" / "A.png")
    shutil.copy(photos / "a.png", tmp_path / "more" / "a-2.png")
    code, _, err = run("segment", photos / "a.png", "more", "--out", "out")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "A-3.json",
        "a-2.json",
        "a.json",
    ]
    assert complaints(err) == [
        f"samfast: {os.path.join('more', 'A.png')}: its results are named A-3.*, "
        f"because {photos / 'a.png'} has A.*"
    ]


def test_an_overlay_does_not_take_another_image_s_name(run, sam, photos, tmp_path):
    shutil.copy(photos / "a.png", photos / "a.overlay.png")
    code, _, err = run(
        "segment",
        photos / "a.png",
        photos / "a.overlay.png",
        "--format",
        "png",
        "--overlay",
        "--out",
        "o",
    )
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "a.overlay-2.overlay.png",
        "a.overlay-2.png",
        "a.overlay.png",
        "a.png",
    ]
    assert "a.overlay-2" in err


def test_a_result_never_overwrites_an_input(run, monkeypatch, photos):
    monkeypatch.setattr(segment_command, "load_model", lambda args: pytest.fail("loaded"))
    before = (photos / "a.png").read_bytes()
    code, _, err = run("segment", photos / "a.png", "--format", "png", "--out", photos)
    assert code == 2
    assert "overwrite" in err
    assert (photos / "a.png").read_bytes() == before


def test_out_that_is_a_file_or_cannot_be_made(run, monkeypatch, photos, tmp_path):
    monkeypatch.setattr(segment_command, "load_model", lambda args: pytest.fail("loaded"))
    (tmp_path / "taken").write_text("")
    for out in ("taken", "taken/below"):
        code, _, err = run("segment", photos / "a.png", "--out", out)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert f"--out {out}" in err


def test_a_result_that_cannot_be_written_is_one_failure(run, sam, photos, tmp_path):
    (tmp_path / "out" / "b.json").mkdir(parents=True)
    code, _, err = run("segment", photos, "--out", "out")
    assert code == 1
    (line,) = complaints(err)
    assert "b.json" in line
    assert (tmp_path / "out" / "c.json").is_file()


def test_what_is_loaded_is_not_walked_by_collections_of_garbage(run, sam, photos, monkeypatch):
    loading: list[bool] = []
    during: list[tuple[int, bool]] = []
    load, write = load_model, ResultWriter.write

    def note_loading(*given):
        loading.append(gc.isenabled())
        return load(*given)

    def note_writing(*given):
        during.append((gc.get_freeze_count(), gc.isenabled()))
        return write(*given)

    monkeypatch.setattr(segment_command, "load_model", note_loading)
    monkeypatch.setattr(ResultWriter, "write", note_writing)
    before = gc.get_freeze_count()
    assert run("segment", photos, "--out", "out")[0] == 0
    assert loading == [False] and during
    assert all(frozen > before + 10_000 and enabled for frozen, enabled in during)
    assert gc.isenabled() and gc.get_freeze_count() < during[0][0]


def test_ctrl_c_leaves_finished_files_whole(run, sam, photos, tmp_path):
    sam.interrupt_at = 1
    code, out, err = run("segment", photos, "--out", "out")
    assert code == 130
    assert out.splitlines() == [os.path.join("out", "a.json")]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.json"]
    assert len(records(tmp_path / "out" / "a.json")) == 2
    assert "1 done, 0 failed" in err.splitlines()[-2]
    assert "--skip-existing" in err.splitlines()[-2]
    assert "interrupted" in err.splitlines()[-1]


def test_files_that_are_there_keep_their_place_among_a_batch(run, sam, photos, tmp_path):
    command = "segment", photos, "--box", "2,2,12,12", "--batch-size", 2, "--out", "out"
    assert run(*command)[0] == 0
    for name in "ac":
        (tmp_path / "out" / f"{name}.json").unlink()
    code, out, _ = run(*command, "--skip-existing", "--json", "lines")
    assert code == 0
    assert out.splitlines() == [os.path.join("out", f"{name}.json") for name in "ac"]
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [(line["name"], line["skipped"]) for line in lines] == [
        ("a.png", False),
        ("b.png", True),
        ("c.png", False),
    ]


def test_answers_before_a_failure_within_a_batch_are_written(
    run, sam, photos, tmp_path, monkeypatch
):
    answer_each = sam.answer_each

    def failing(*given, **options):
        for number, answer in enumerate(answer_each(*given, **options)):
            if number == 2:
                raise DeviceMemoryError("the device is gone")
            yield answer

    monkeypatch.setattr(sam, "answer_each", failing)
    code, _, err = run("segment", photos, "--box", "2,2,12,12", "--batch-size", 3, "--out", "out")
    assert code == 2
    assert "the device is gone" in err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "b.json"]


def out_of_memory_in_a_stream(images, progress=None, **options):
    import torch

    for _ in images:
        raise torch.OutOfMemoryError("x")
        yield


def test_out_of_memory_is_retried_image_by_image(run, sam, photos, monkeypatch):
    alone = sam.segment_each

    def only_alone(images, **options):
        if isinstance(images, list):
            return alone(iter(images), **options)
        return out_of_memory_in_a_stream(images, **options)

    monkeypatch.setattr(sam, "segment_each", only_alone)
    code, out, err = run("segment", photos, "--batch-size", 3)
    assert (code, complaints(err)) == (0, [])
    assert len(out.splitlines()) == 3


def test_out_of_memory_of_one_image_says_what_to_do(run, sam, photos, monkeypatch):
    monkeypatch.setattr(sam, "segment_each", out_of_memory_in_a_stream)
    code, _, err = run("segment", photos / "a.png")
    assert code == 1
    assert "--points-per-batch" in err


@pytest.mark.parametrize("prefetch", [0, 1, 5])
@pytest.mark.parametrize("bad", ["a", "b", "c"])
def test_an_image_that_fails_in_the_stream_spares_the_others(
    run, sam, photos, monkeypatch, prefetch, bad
):
    from samfast.errors import NumericsError

    answer, index = sam._everything, "abc".index(bad)
    Image.new("RGB", (30, 20)).save(photos / f"{bad}.png")
    (photos / "aa.png").write_bytes(b"no picture at all")

    def everything(height, width):
        if width == 30:
            raise NumericsError(f"image {index}, object 7: the answer holds NaN")
        return answer(height, width)

    sam.prefetch = prefetch
    monkeypatch.setattr(sam, "_everything", everything)
    code, out, err = run("segment", photos, "--out", "out")
    assert code == 1
    assert [os.path.basename(line) for line in out.splitlines()] == [
        f"{name}.json" for name in "abc" if name != bad
    ]
    first, second = sorted(complaints(err), key=lambda line: "NaN" in line)
    assert "aa.png" in first
    assert second == f"samfast: {photos / bad}.png: object 7: the answer holds NaN"


def test_an_error_about_no_image_is_not_reported_as_one(run, sam, photos, monkeypatch):
    from samfast.errors import InputError

    monkeypatch.setattr(
        sam, "segment_each", lambda images, **o: _raise(InputError("no such option"))
    )
    code, out, err = run("segment", photos)
    assert (code, out) == (2, "")
    assert err.splitlines() == ["samfast: no such option"]


def _raise(error):
    raise error


def test_png_is_a_label_map(run, sam, photos, tmp_path):
    assert run("segment", photos / "a.png", "--format", "png", "--out", "out")[0] == 0
    labels = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert labels.shape == (16, 24)
    assert labels[12, 6] == 1  # the large one
    assert labels[2, 2] == 2  # the small one on top of it
    assert labels[2, 20] == 0


def test_npz_holds_the_masks(run, sam, photos, tmp_path):
    assert run("segment", photos / "a.png", "--format", "npz", "--out", "out")[0] == 0
    with np.load(tmp_path / "out" / "a.npz", allow_pickle=False) as arrays:
        masks = arrays["masks"]
    assert masks.shape == (2, 16, 24)
    assert masks.sum(axis=(1, 2)).tolist() == [192, 48]


def test_overlay_is_a_picture_of_the_image_s_size(run, sam, photos, tmp_path):
    code, out, _ = run("segment", photos / "b.png", "--point", "10,8", "--overlay", "--out", "out")
    assert code == 0
    assert out.splitlines() == [os.path.join("out", "b.json"), os.path.join("out", "b.overlay.png")]
    picture = np.asarray(Image.open(tmp_path / "out" / "b.overlay.png").convert("RGB"))
    assert picture.shape[:2] == (16, 24)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1


def test_an_overlay_of_all_masks_has_a_legend_below_the_photo(run, sam, photos, tmp_path):
    options = ("--box", "2,2,12,12", "--overlay", "--out", "out")
    assert run("segment", photos / "a.png", *options, "--all-masks")[0] == 0
    with Image.open(tmp_path / "out" / "a.overlay.png") as picture:
        assert picture.width == 24
        assert picture.height > 16 + 3 * 12  # three lines of text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--point", "3"], "X,Y"),
        (["--point", "3,4,5"], "label"),
        (["--point", "nan,4"], "X,Y"),
        (["--box", "1,2,3"], "X0,Y0"),
        (["--box", "9,2,3,8"], "inverted"),
        (["--format", "gif"], "--format"),
        (["--device", "tpu"], "--device"),
        (["--batch-size", "0"], "--batch-size"),
        (["--points-per-side", "x"], "--points-per-side"),
        (["--pred-iou-thresh", "2"], "0 to 1"),
        (["--crop-n-layers", "-1"], "--crop-n-layers"),
        (["--point", "3,4", "--points-per-side", "8"], "--points-per-side"),
        (["--all-masks"], "--all-masks"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run, photos, monkeypatch, options, said):
    monkeypatch.setattr(segment_command, "load_model", lambda args: pytest.fail("loaded"))
    code, out, err = run("segment", photos / "a.png", *options)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err


def test_disk_full_midway(run, sam, photos, monkeypatch):
    calls = []

    def full(self, read, records):
        calls.append(read.file.stem)
        raise OutputError("out: no space left on the device; free some")

    monkeypatch.setattr(ResultWriter, "_write", full)
    code, _, err = run("segment", photos)
    assert code == 1
    assert len(calls) == len(complaints(err)) == 3


@pytest.mark.parametrize("prompts", [[], ["--point", "3,4"]])
def test_a_changed_image_is_said_once(run, photos, prompts):
    Image.new("RGBA", (24, 16)).save(photos / "a.png")
    grid = ["--points-per-side", "1"] if not prompts else []
    code, _, err = run("segment", photos / "a.png", *prompts, *grid, "--device", "cpu")
    assert code == 0
    assert [line for line in err.splitlines() if "alpha" in line] == [
        f"samfast: {photos / 'a.png'}: alpha was dropped; what was transparent shows its own colour"
    ]


def test_max_pixels_is_pillow_s_limit_during_the_command(run, sam, photos):
    limit = Image.MAX_IMAGE_PIXELS
    code, _, err = run("segment", photos / "a.png", "--max-pixels", 24 * 16 - 1)
    assert code == 1 and "24 x 16 pixels are more than Pillow's limit of 383" in err
    assert run("segment", photos / "a.png", "--max-pixels", 24 * 16)[0] == 0
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("broken", ["decoder", "encoder"])
@pytest.mark.parametrize("prompts", [["--point", "3,4"], ["--box", "2,2,9,9"], []])
def test_a_model_that_answers_nan_fails_the_image(run, photos, monkeypatch, broken, prompts):
    model = random_sam()
    with torch.no_grad():
        if broken == "decoder":
            model.mask_decoder.mask_tokens.weight.fill_(float("nan"))
        else:
            model.image_encoder.neck[3].bias.fill_(float("nan"))
    engine = fast(model, RECIPES["fp32_sdpa"])
    monkeypatch.setattr(segment_command, "load_model", lambda args: engine)
    grid = [] if prompts else ["--points-per-side", "1"]
    code, out, err = run("segment", photos / "a.png", *prompts, *grid, "--out", "out")
    assert (code, out) == (1, "")
    assert err.startswith(f"samfast: {photos / 'a.png'}: ") and "holds NaN or infinity" in err
    assert "image 0" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--crop-n-layers", "30"), "crops and"),
        (("--crop-n-layers", "1000000000"), "crops and"),
        (("--points-per-side", "100000"), "points, which take"),
    ],
)
def test_absurd_work_is_refused_before_the_model_is_loaded(run, photos, monkeypatch, options, said):
    monkeypatch.setattr(segment_command, "load_model", None)
    code, out, err = run("segment", photos, *options)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and said in err
    assert not Path("samfast-output").exists()


@pytest.mark.parametrize(
    ("names", "threads"), [(["coco"], 1), (["coco", "sa1b", "polygons"], 1), (["coco", "png"], 4)]
)
def test_several_threads_write_what_is_compressed_beside_a_gpu(tmp_path, names, threads):
    writer = ResultWriter(tmp_path, {name: FORMATS[name] for name in names})
    assert writer.threads(beside_gpu=True) == threads
    assert writer.threads(beside_gpu=False) == 1
