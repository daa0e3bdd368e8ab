"""`samfast cache`."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch

import samfast
from samfast.device import artifacts
from samfast.device.artifacts import Key
from samfast.recipes import RECIPES, evidence


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"bundle", None))
    return tmp_path


@pytest.fixture
def filled(folder):
    """An entry and a checkpoint with its note."""
    path = artifacts.save(
        Key("a card, compute capability 9.0", "vit_b", 1024, "dtype=bfloat16", 8), 1.0, 0.0
    )
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "sam.pth").write_bytes(b"w" * 2_000_000)
    (folder / "checkpoints" / "sam.pth.verified.json").write_text("{}")
    return path


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_an_empty_cache_says_so(run, folder):
    code, out, err = run("cache")
    assert (code, err) == (0, "")
    assert f"cache {folder}" in out
    assert "nothing compiled" in out and "no checkpoint" in out


def test_entries_and_checkpoints_are_listed(run, filled, folder):
    code, out, _ = run("cache", "list")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("compiled")]
    for word in ("vit_b", "dtype=bfloat16", "8", "a card, compute capability 9.0", str(filled)):
        assert word in line
    assert f"2.0 MB  {folder / 'checkpoints' / 'sam.pth'}" in out
    assert "verified" not in out


def test_json_on_stdout_is_pure(run, filled):
    code, out, err = run("cache", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [entry["path"] for entry in report["entries"]] == [str(filled)]
    assert [each["bytes"] for each in report["checkpoints"]] == [2_000_000]


def test_clearing_leaves_checkpoints(run, filled, folder):
    code, out, _ = run("cache", "clear", "--yes")
    assert code == 0
    assert "deleted 1 compiled or tuned entries" in out
    assert not filled.exists()
    assert (folder / "checkpoints" / "sam.pth").exists()


def test_clearing_checkpoints_too(run, filled, folder):
    code, out, _ = run("cache", "clear", "--yes", "--checkpoints", "--json")
    assert code == 0
    assert json.loads(out)["freed_bytes"] > 2_000_000
    assert list((folder / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_clearing_asks_at_a_terminal(run, filled, monkeypatch, answer, code):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    exit_code, _, err = run("cache", "clear")
    assert exit_code == code
    assert "delete 1 compiled or tuned entries" in err
    assert filled.exists() == (code == 1)
    assert ("nothing was deleted" in err) == (code == 1)


def test_without_a_terminal_clearing_needs_yes(run, filled, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, err = run("cache", "clear")
    assert code == 2
    assert "add --yes" in err
    assert filled.exists()


def test_options_without_effect_are_refused(run):
    code, _, err = run("cache", "--yes")
    assert code == 2
    assert "cache clear" in err


def test_clearing_cannot_ask_a_closed_stdin(run, filled, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = run("cache", "clear")
    assert code == 2 and "add --yes" in err
    assert filled.exists()


def test_what_was_calibrated_is_listed_and_stays(run, folder):
    row = evidence.Evidence(
        fingerprint="ab" * 32,
        checkpoint="mine.pth",
        model="vit_b",
        recipe="int8",
        rounding=evidence.rounding(RECIPES["int8"]),
        kind="agreement",
        loss_points=0.1,
        photos=9,
        photo_set="photos",
        details={},
        environment={"samfast": samfast.__version__, "date": "2030-01-02T03:04"},
    )
    path = evidence.save_calibrated([row])
    (folder / "calibrated" / f"{'cd' * 32}.json").write_text("{}")
    code, out, _ = run("cache")
    assert code == 0
    first, second = (line for line in out.splitlines() if line.endswith(".json"))
    assert first.split() == [
        "mine.pth", "vit_b", "int8", "9", "0.5", "kB", "2030-01-02", str(path)
    ]  # fmt: skip
    assert "none of this version" in second
    about, _ = json.loads(run("cache", "--json")[1])["calibrated"]
    assert (about["checkpoint"], about["recipes"], about["photos"]) == ("mine.pth", ["int8"], 9)
    assert run("cache", "clear", "--yes")[0] == 0
    assert path.exists()
