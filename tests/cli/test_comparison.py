"""`samfast bench --compare`: output and exit codes; what counts as a fall is tested beside
samfast.bench.compare."""

from __future__ import annotations

import json

import pytest

from tests.bench.rows import row, score, write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "old.json", [row("fused", 400.0), row("fp32", 40.0), row("int8", 50.0)])
    write(
        tmp_path / "slow.json",
        [row("fused", 200.0, torch="2.13"), row("fp8", 500.0), row("int8", None)],
    )
    write(tmp_path / "same.json", [row("fused", 401.0)])
    return tmp_path


def test_a_fall(run, folder):
    code, out, err = run("bench", "--compare", "old.json", "slow.json")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "torch: 2.11.0 in old.json, 2.11.0, 2.13 in slow.json"
    fused = next(line for line in lines if line.startswith("fused"))
    assert "400 -> 200 x0.500 !" in fused and "10%, 10%" in fused and fused.endswith("fell")
    assert "fell was ok, is refused: needs a GPU" in out
    assert "only in old.json: fp32, batch 8, vit_b, random weights, Card A" in lines
    assert "only in slow.json: fp8, batch 8, vit_b, random weights, Card A" in lines
    assert lines[-2:] == [
        "fell: int8, batch 8, vit_b, random weights, Card A: status",
        "fell: fused, batch 8, vit_b, random weights, Card A: encoder images/s, images/s",
    ]


def test_no_fall(run, folder):
    code, out, err = run("bench", "--compare", "old.json", "same.json")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "nothing fell" and "!" not in out


def test_as_json(run, folder):
    code, out, err = run("bench", "--compare", "old.json", "slow.json", "--json", "-")
    told = json.loads(out)
    assert (code, err) == (1, "")
    assert (told["old"], told["new"], told["fell"]) == ("old.json", "slow.json", True)
    assert [r["recipe"] for r in told["rows"]] == ["int8", "fused"]
    code, out, _ = run("bench", "--compare", "old.json", "same.json", "--json", "told.json")
    assert code == 0 and "nothing fell" in out
    assert json.loads((folder / "told.json").read_text())["fell"] is False


def test_nothing_in_common_is_no_success(run, folder):
    write(folder / "other.json", [row("fused", gpu="Card B")])
    code, out, err = run("bench", "--compare", "old.json", "other.json")
    assert code == 2 and "nothing was compared" in err
    assert "gpu: Card A in old.json, Card B in other.json" in out
    code, out, _ = run("bench", "--compare", "old.json", "other.json", "--json", "-")
    assert code == 2 and json.loads(out)["rows"] == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("old.json", "none.json"), "none.json: there is no such file"),
        (("bad.json", "old.json"), "bad.json: cannot be read as JSON"),
        (("old.json", "eval.json"), "no list of rows"),
        (("old.json",), "expected 2 arguments"),
        (("old.json", "same.json", "--recipes", "fused"), "--recipes has no effect"),
        (("old.json", "same.json", "--batch-size", 8), "--batch-size has no effect"),
        (("old.json", "same.json", "--json", "none/x.json"), "there is no directory"),
    ],
)
def test_wrong_usage(run, folder, argv, words):
    (folder / "bad.json").write_text("{")
    write(folder / "eval.json", score())
    code, out, err = run("bench", "--compare", *argv)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert words in err
