"""What files of results may hold, and what is said of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from samfast.bench.environment import SAME_RUN, stamp
from samfast.bench.results import finished, ladder_order, plain, read
from samfast.errors import InputError
from tests.bench.rows import row, write

COMMITTED = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "no list of rows"),
        ({}, "no list of rows"),
        ("fused", "no list of rows"),
        ([1], "row 0 is no row"),
        ([{"recipe": "fused", "environment": {}}], "row 0 is no row"),
        ([{k: v for k, v in row().items() if k != "environment"}], "has no environment"),
        (
            [row(), row(encoder_images_per_second="fast")],
            "row 1: encoder_images_per_second is 'fast'",
        ),
        ([row(peak_memory_bytes=-1)], "peak_memory_bytes is '-1'"),
        ([row(spread=True)], "spread is 'True'"),
        ([row(batch_size=0)], "batch_size is '0'"),
        ([row(batch_size="8")], "batch_size is '8'"),
    ],
)
def test_what_is_no_result_is_said_with_its_place(tmp_path, content, words):
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(InputError, match=r"bad\.json") as error:
        read(path)
    assert words in str(error.value)


def test_nan_and_infinity_are_no_figures(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="images_per_second is"):
            read(write(tmp_path / "a.json", [row(images_per_second=value)]))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read(tmp_path / "none.json")
    with pytest.raises(InputError, match="Is a directory"):
        read(tmp_path)
    for number, data in enumerate((b"{", b"\xff\xfe\x00", b"[" * 100_000)):
        path = tmp_path / f"{number}.json"
        path.write_bytes(data)
        with pytest.raises(InputError, match="cannot be read as JSON"):
            read(path)


def test_words_of_a_file_are_one_printable_line(tmp_path):
    content = read(
        write(tmp_path / "a.json", [row("a\x00b\n\u202ec", status="failed: x\ny" + "z" * 999)])
    )[0]
    assert content["recipe"] == "a b c"
    assert content["status"].startswith("failed: x yzz") and len(content["status"]) == 300
    assert plain("fused") == "fused"


def test_the_ladder_s_order():
    names = ["fp8", "mine", "rival:other", "fused", "bf16", "rival:segment-anything", "fp32", "2:4"]
    assert sorted(names, key=ladder_order) == [
        "rival:segment-anything",
        "rival:other",
        "fp32",
        "bf16",
        "2:4",
        "fused",
        "fp8",
        "mine",
    ]


def test_committed_results_are_read():
    assert len(read(COMMITTED / "h200_vit_b.json")) >= 9


@pytest.fixture
def here():
    return {**stamp("cpu"), "commit": "abc", "dirty": False}


def test_finished_rows_of_the_same_stamp(tmp_path, here):
    statuses = ("ok", "wrong: relative error 1", "failed: lost", "refused: no GPU", "interrupted")
    rows = [row(status=status, environment=here) for status in statuses]
    path = write(tmp_path / "a.json", rows)
    assert [r["status"] for r in finished(path, here)] == ["ok", "wrong: relative error 1"]
    assert finished(path, here)[0].items() >= rows[0].items()
    assert len(finished(path, {**here, "date": "2030-01-01"})) == 2


@pytest.mark.parametrize("key", SAME_RUN)
def test_another_stamp(tmp_path, here, key):
    assert key in here
    path = write(tmp_path / "a.json", [row(environment={**here, key: "another"})])
    assert finished(path, here) == []


def test_a_changed_tree_keeps_nothing(tmp_path, here):
    dirty = {**here, "dirty": True}
    assert finished(write(tmp_path / "a.json", [row(environment=dirty)]), dirty) == []


def test_a_file_that_is_not_there_yet(tmp_path, here):
    assert finished(tmp_path / "none.json", here) == []


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"status": "ok"}]', '[{"environment": {}}]'])
def test_a_file_of_something_else(tmp_path, here, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        finished(tmp_path / "a.json", here)
