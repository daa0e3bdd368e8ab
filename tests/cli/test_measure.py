"""`samfast eval` and `bench`: arguments and output; the figures are tested beside samfast.bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import samfast.bench
from samfast.bench.scoring import Scoring
from samfast.cli import eval_command
from samfast.errors import DatasetError, ImageError
from tests.cli.test_console import Terminal

RESULT = {
    "model": "vit_xs",
    "recipe": "fp32_sdpa",
    "images": 2,
    "masks": 5,
    "point": {"miou": 0.5, "miou_oracle": 0.6, "filled_box": 0.58},
    "box": {"miou": 0.75, "filled_box": 0.58},
    "by_source": {"coco": {"point": {"miou": 0.4, "miou_oracle": 0.5, "filled_box": 0.5}}},
    "images_per_second": 1.5,
    "peak_memory_bytes": 1,
    "environment": {"torch": "x"},
}

ROW = {
    "recipe": "fp32",
    "batch_size": 1,
    "encoder_images_per_second": 1.5,
    "images_per_second": 1.25,
    "spread": 0.034,
    "peak_memory_bytes": 2**30,
    "doubts": [],
    "status": "ok",
}


class Images(list):
    """A data set as far as the command looks at it."""

    @property
    def images(self):
        return self


@pytest.fixture
def bench(monkeypatch):
    """Stand-ins for the modules of samfast.bench; what they were called with."""
    calls: dict[str, tuple] = {}

    def open_dataset(path, images=None, annotations=None):
        calls["dataset"] = (path, images, annotations)
        if path == "nowhere":
            raise DatasetError("nowhere: no such directory; check the path")
        annotated = [SimpleNamespace(annotations=[1]), SimpleNamespace(annotations=[2, 3])]
        return Images(annotated)

    def score(sam, data, *, progress, on_error, **options):
        calls["evaluate"] = (sam, data, options)
        progress(1)
        if options["limit"] == 2:
            on_error("b.jpg: is truncated; copy it again")
        if options["limit"] == 1:
            raise ImageError("a.jpg: is truncated; copy it again")
        return RESULT

    def ladder(names, **options):
        calls["ladder"] = (names, options)
        return [ROW]

    monkeypatch.setattr(
        samfast.bench, "coco_dataset", SimpleNamespace(open_dataset=open_dataset), raising=False
    )
    monkeypatch.setattr(samfast.bench, "accuracy", SimpleNamespace(evaluate=score), raising=False)
    monkeypatch.setattr(samfast.bench, "ladder", SimpleNamespace(run=ladder), raising=False)
    sam = SimpleNamespace(batch_size=1)
    monkeypatch.setattr(eval_command, "load_model", lambda args: sam)
    return calls


def test_eval_json_on_stdout_is_pure(run, bench):
    code, out, err = run(
        "eval", "data", "--json", "-", "--limit", 3, "--min-area", 1024, "--prompts", "box"
    )
    assert (code, err) == (0, "")
    assert json.loads(out) == RESULT
    assert bench["dataset"] == ("data", None, None)
    options = bench["evaluate"][2]
    asked = {"prompts": "box", "min_area": 1024, "point_rule": "edt", "limit": 3, "batch_size": 1}
    assert options == asked


def test_eval_into_a_file_prints_a_summary_too(run, bench, tmp_path):
    code, out, _ = run(
        "eval", "--images", "i", "--annotations", "a.json", "--json", tmp_path / "r.json"
    )
    assert code == 0
    assert bench["dataset"] == (None, "i", "a.json")
    assert json.loads((tmp_path / "r.json").read_text()) == RESULT
    assert "vit_xs, recipe fp32_sdpa: 2 images, 5 masks, 1.5 images/s" in out
    assert "all   box    miou 0.7500  filled_box 0.5800" in out
    assert "coco  point  miou 0.4000" in out


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--images", "i"),
        ("data", "--images", "i", "--annotations", "a"),
        ("data", "--prompts", "mask"),
    ],
)
def test_eval_needs_one_data_set(run, bench, argv):
    code, out, err = run("eval", *argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert not bench


def test_eval_of_a_data_set_that_is_none_and_of_a_bad_image(run, bench):
    assert run("eval", "nowhere") == (
        2,
        "",
        "samfast: nowhere: no such directory; check the path\n",
    )
    assert run("eval", "data", "--limit", 1) == (
        1,
        "",
        "samfast: a.jpg: is truncated; copy it again\n",
    )
    code, out, err = run("eval", "data", "--limit", 2, "--json", "-")
    assert (code, err) == (1, "samfast: b.jpg: is truncated; copy it again\n")
    assert json.loads(out) == RESULT  # the other images are scored all the same


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system has no device that is always full"
)
@pytest.mark.parametrize("command", [("eval", "data"), ("bench",)])
def test_a_full_disk_is_one_line(run, bench, command):
    code, _, err = run(*command, "--json", "/dev/full")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "/dev/full" in err and "No space left" in err and "free some space" in err


def test_an_interrupted_eval_leaves_no_half_result(run, bench, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(samfast.bench.accuracy, "evaluate", interrupted)
    code, out, err = run("eval", "data", "--json", tmp_path / "r.json")
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_set_says_what_to_download(run, tmp_path):
    for command in (("eval", "--images", tmp_path / "no"), ("bench", "--images", tmp_path / "no")):
        code, out, err = run(*command, "--annotations", tmp_path / "no.json")
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert "val2017.zip" in err and "annotations_trainval2017.zip" in err
        assert "--annotations annotations/instances_val2017.json" in err


def test_bench(run, bench):
    code, out, err = run(
        "bench", "--recipes", "fp32", "bf16", "--batch-size", 4, "--model", "vit_b", "--json", "-"
    )
    assert (code, err) == (0, "")
    assert json.loads(out) == [ROW]
    names, options = bench["ladder"]
    assert names == ["fp32", "bf16"]
    assert (options["model"], options["checkpoint"], options["device"]) == ("vit_b", None, None)
    assert options["batch_size"] == [4]
    assert options["scoring"] is None
    code, out, _ = run("bench")
    assert code == 0
    assert out.splitlines()[1].split() == [
        "fp32",
        "1",
        "1.5",
        "1.25",
        "3%",
        "1024",
        "MiB",
        "-",
        "-",
        "-",
        "-",
        "ok",
    ]


def test_bench_passes_on_what_is_asked(run, bench, tmp_path):
    file = tmp_path / "rows.json"
    words = (
        "--batch-size",
        1,
        8,
        32,
        "--repeats",
        9,
        "--kernels",
        "--cold",
    )
    scoring = (
        "--images",
        "i",
        "--annotations",
        "a.json",
        "--point-rule",
        "edt",
        "--min-area",
        4,
        "--limit",
        2,
    )
    code, _, _ = run(
        "bench", *words, *scoring, "--rivals-path", "there", "--resume", file, "--json", file
    )
    assert code == 0
    names, options = bench["ladder"]
    assert names is None
    on_rows, on_stage = options.pop("on_rows"), options.pop("on_stage")
    assert options == {
        "model": "vit_xs",
        "checkpoint": None,
        "device": None,
        "batch_size": [1, 8, 32],
        "repeats": 9,
        "scoring": Scoring(None, "i", "a.json", "edt", 4, 2),
        "rivals_path": "there",
        "kernels": True,
        "cold": True,
        "resume": str(file),
    }
    file.unlink()
    on_stage("fp32, batch 1: encoder")  # stderr is no terminal
    on_rows([ROW, ROW], ROW)  # as the ladder does after each row
    assert json.loads(file.read_text()) == [ROW, ROW]
    code, _, err = run("bench", "--batch-size", 0)
    assert code == 2 and "'0'" in err


def test_bench_scores_a_folder_by_the_rule_of_the_post(run, bench):
    assert run("bench", "--data", "folder", "--recipes", "fp32")[0] == 0
    _, options = bench["ladder"]
    assert options["scoring"] == Scoring("folder")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--data", "d", "--images", "i", "--annotations", "a"), "either --data DATA or --images"),
        (("--images", "i"), "--images needs --annotations FILE"),
        (("--annotations", "a"), "--annotations needs --images DIR"),
        (("--limit", 3), "--limit needs a data set"),
        (("--min-area", 3), "--min-area needs a data set"),
        (("--point-rule", "edt"), "--point-rule needs a data set"),
    ],
)
def test_bench_needs_a_whole_data_set_or_none(run, bench, argv, words):
    code, out, err = run("bench", *argv)
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1
    assert not bench


def test_bench_shows_accuracy():
    from samfast.cli.bench_command import describe

    lines = describe(
        [{**ROW, "miou": 0.68914, "agreement": {"mask_iou": 0.98765, "flipped_share": 0.001}}]
    )
    assert lines[1].split()[-4:] == ["0.9877", "0.6891", "-", "ok"]


def test_bench_shows_a_column_for_each_rival():
    from samfast.cli.bench_command import describe

    lines = describe([{**ROW, "ratio_to": {"fast": 1.5, "slow": 12.0}}, {**ROW, "ratio_to": {}}])
    assert lines[0].split("  ")[-3:] == ["times fast", "times slow", "status"]
    assert lines[1].split()[-3:] == ["1.5", "12", "ok"]
    assert lines[2].split()[-3:] == ["-", "-", "ok"]


DOUBTFUL = {
    **ROW,
    "encoder_images_per_second": 0.07,
    "images_per_second": 0.16,
    "spread": None,
    "doubts": ["0.16 images/s to masks are more than the encoder's 0.07", "others are busy"],
}


def test_bench_says_which_rows_are_doubtful_and_that_one_run_has_no_spread():
    from samfast.cli.bench_command import describe

    headings, doubtful, fine, why = describe([DOUBTFUL, ROW])
    assert "spread" in headings
    assert "one run" in doubtful and "0%" not in doubtful and doubtful.endswith("ok, doubtful")
    assert "3%" in fine and fine.endswith(" ok")
    assert why == f"fp32, batch 1 is doubtful: {'; '.join(DOUBTFUL['doubts'])}"


def rows_of(*rows):
    """A ladder that measures them, naming a stage before each."""

    def ladder(names, *, on_rows, on_stage, **options):
        for count, row in enumerate(rows, start=1):
            on_stage("fp32, batch 1: warming up")
            on_rows(list(rows[:count]), row)
        return list(rows)

    return SimpleNamespace(run=ladder)


REFUSED = {
    **ROW,
    "recipe": "fp8",
    **dict.fromkeys(("encoder_images_per_second", "images_per_second", "spread")),
    "status": "refused: needs a GPU",
}


def test_bench_without_a_terminal_has_a_line_for_each_row(run, bench, monkeypatch):
    monkeypatch.setattr(samfast.bench, "ladder", rows_of(ROW, DOUBTFUL, REFUSED))
    code, out, err = run("bench", "--json", "-")
    assert code == 0 and len(json.loads(out)) == 3
    assert err.splitlines() == [
        "samfast: fp32, batch 1: 1.5 images/s of the encoder, 1.25 images/s to masks",
        "samfast: fp32, batch 1: 0.07 images/s of the encoder, 0.16 images/s to masks; doubtful: "
        + "; ".join(DOUBTFUL["doubts"]),
        "samfast: fp8, batch 1: refused: needs a GPU",
    ]


def test_bench_on_a_terminal_names_the_stage_and_says_doubts(run, bench, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(samfast.bench, "ladder", rows_of(ROW, DOUBTFUL))
    assert run("bench", "--recipes", "fp32", "bf16")[0] == 0
    shown = terminal.getvalue()
    assert "fp32, batch 1: warming up" in shown
    assert "samfast: fp32, batch 1: doubtful: 0.16 images/s to masks" in shown
    assert "1.5 images/s of the encoder" not in shown  # the table has it
