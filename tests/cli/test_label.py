"""`samfast label`: what it refuses, before any model is loaded."""

from __future__ import annotations

import threading

import pytest

from samfast.cli import label_command
from samfast.cli.main import main


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not looked at")
    return tmp_path


def said(arguments, capsys) -> str:
    assert main(["label", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_folder_with_photos_is_needed(photos, capsys):
    assert "no such folder" in said([photos / "nothing"], capsys)
    assert "no such folder" in said([photos / "a.jpg"], capsys)
    (photos / "empty" / "below").mkdir(parents=True)
    (photos / "empty" / "below" / "b.png").touch()
    assert "no photo in this folder (--recursive" in said([photos / "empty"], capsys)


def test_a_damaged_annotations_file_is_said_and_left(photos, capsys):
    path = photos / "annotations.json"
    path.write_text('{"images": [')
    assert "not JSON" in said([photos], capsys)
    assert path.read_text() == '{"images": ['
    other = photos / "other.json"
    other.write_text("[]")
    assert "not a COCO instances file" in said([photos, "--annotations", other], capsys)


def test_annotations_must_have_a_place(photos, capsys):
    missing = photos / "none" / "a.json"
    assert "--annotations" in said([photos, "--annotations", missing], capsys)


def test_other_machines_need_a_token(photos, capsys):
    assert "a token is required" in said([photos, "--host", "0.0.0.0"], capsys)


@pytest.mark.parametrize(
    ("arguments", "screen", "opened"),
    [([], ":0", True), ([], "", False), (["--no-browser"], ":0", False)],
)
def test_the_page_is_opened_where_there_is_a_screen(
    photos, capsys, monkeypatch, arguments, screen, opened
):
    """The address is printed in any case, for a browser elsewhere."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", screen)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    seen = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda address: seen.set())

    def serve(*args, on_address, **more) -> int:
        on_address("http://127.0.0.1:9/")
        return 0

    monkeypatch.setattr(label_command, "run_server", serve)
    assert main(["label", str(photos), *arguments]) == 0
    assert capsys.readouterr().out == "http://127.0.0.1:9/\n"
    assert seen.wait(10 if opened else 0.2) == opened
