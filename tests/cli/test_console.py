"""Messages on stderr, results on stdout, and a bar only for a terminal."""

from __future__ import annotations

import io
import json
import sys

import pytest

from samfast.cli.console import Console, columns, write_json
from samfast.errors import OutputError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(console):
    with console.progress(2, "image") as advance:
        console.result("out/a.json")
        advance(1)
        console.warn("b.png: not\nan image")
        advance(1)


def test_no_bar_without_a_terminal(capsys):
    work(Console())
    captured = capsys.readouterr()
    assert captured.out == "out/a.json\n"
    assert captured.err == "samfast: b.png: not an image\n"


def test_a_bar_on_a_terminal_leaves_stdout_clean(capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(Console())
    assert capsys.readouterr().out == "out/a.json\n"
    assert "image" in terminal.getvalue()
    assert "samfast: b.png: not an image\n" in terminal.getvalue()


def test_results_of_a_block_are_shown_in_one_go_also_if_it_fails(capsys, monkeypatch):
    console = Console()
    written: list[str] = []
    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: written.append(text) or write(text))

    def block() -> None:
        with console.results_together():
            console.result("a.json")
            console.result("b\tc.json")
            assert written == []
            raise RuntimeError

    with pytest.raises(RuntimeError):
        block()
    console.result("d.json")
    assert written == ["a.json\nb\\tc.json\n", "d.json\n"]
    assert capsys.readouterr().out == "a.json\nb\\tc.json\nd.json\n"


def test_json_is_whole_or_absent(tmp_path, capsys):
    write_json({"a": [1]}, str(tmp_path / "x.json"))
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1]}
    write_json({"a": [1]}, "-")
    assert json.loads(capsys.readouterr().out) == {"a": [1]}
    with pytest.raises(OutputError):
        write_json({}, str(tmp_path / "none" / "x.json"))
    with pytest.raises(ValueError, match="JSON"):
        write_json(float("nan"), str(tmp_path / "nan.json"))
    assert not (tmp_path / "nan.json").exists()


def test_columns():
    assert columns(["a", "bee"], [["long", "x"]]) == ["a     bee", "long  x"]
