"""`samfast report`: arguments, files and exit codes; the charts are tested beside
samfast.bench."""

from __future__ import annotations

import sys

import pytest

from tests.bench.rows import row, score, write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.json", [row("fused"), row("int8", None)])
    write(tmp_path / "eval.json", score("fused"))
    return tmp_path


def test_a_report(run, folder):
    code, out, err = run("report", "rows.json", "rows.json")
    assert code == 0
    assert err == "samfast: int8, batch 8, vit_b on Card A: refused: needs a GPU\n"
    lines = out.splitlines()
    assert lines[0] == "samfast-report/report.html" and len(lines) == 7
    assert all((folder / line).is_file() for line in lines)
    assert 'src="vit_b-card-a-abcdef0-batch-8-speed.svg"' in (folder / lines[0]).read_text("utf-8")


def test_a_bad_file_among_good_ones_is_said_and_the_others_are_drawn(run, folder):
    code, out, err = run("report", "rows.json", "none.json", "--out", "deep/er")
    assert code == 1
    assert err.splitlines()[0] == "samfast: none.json: there is no such file; check the name"
    assert out.splitlines()[0] == "deep/er/report.html"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["none.json"], "there is no such file"),
        (["empty.json"], "no list of rows"),
        (["object.json"], "no list of rows"),
        (["eval.json"], "no list of rows"),
        ([], "required: RESULTS.json"),
    ],
)
def test_nothing_to_draw(run, folder, files, words):
    write(folder / "empty.json", [])
    write(folder / "object.json", {})
    code, out, err = run("report", *files)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert words in err
    assert not (folder / "samfast-report").exists()


def test_only_refused_rows_are_a_page_without_charts(run, folder):
    write(folder / "refused.json", [row("int8", None)])
    code, out, err = run("report", "refused.json")
    assert (code, out) == (0, "samfast-report/report.html\n")
    assert "refused: needs a GPU" in err


def test_a_folder_that_is_a_file(run, folder):
    code, out, err = run("report", "rows.json", "--out", "eval.json")
    assert (code, out) == (2, "")
    assert "eval.json: that is a file" in err


def test_without_matplotlib(run, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run("report", "rows.json")
    assert (code, out) == (2, "")
    assert "pip install 'samfast[report]'" in err
